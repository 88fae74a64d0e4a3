package target

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/iscsi/pdu"
	"github.com/cleave-san/cleave/lun"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testTarget iscsi.Name = "iqn.2026-01.test:disk"
	alice      iscsi.Name = "iqn.2026-01.test:alice"
	bob        iscsi.Name = "iqn.2026-01.test:bob"
)

// disk is a device in memory whose calls can be held up.
type disk struct {
	mu   sync.RWMutex
	data []byte
	hold chan struct{} // non-nil: reads and writes wait until it is closed
	in   chan struct{} // told of each call that waits
}

func newDisk(size int) *disk { return &disk{data: make([]byte, size)} }

// newHeldDisk is one that hangs until its hold is closed.
func newHeldDisk(size int) *disk {
	return &disk{data: make([]byte, size), hold: make(chan struct{}), in: make(chan struct{}, 1000)}
}

func (d *disk) wait() {
	if d.hold != nil {
		d.in <- struct{}{}
		<-d.hold
	}
}

// content is a copy of what is there.
func (d *disk) content() []byte {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return bytes.Clone(d.data)
}

func (d *disk) Size() int64 { return int64(len(d.data)) }
func (d *disk) Sync() error { return nil }

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	d.wait()
	if err := lun.CheckRange(off, int64(len(p)), d.Size()); err != nil {
		return 0, err
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	return copy(p, d.data[off:]), nil
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	d.wait()
	if err := lun.CheckRange(off, int64(len(p)), d.Size()); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(d.data[off:], p), nil
}

// lab is a server with one target.
type lab struct {
	t      testing.TB
	s      *Server
	portal netip.AddrPort
}

func newLab(t testing.TB, o Options) *lab {
	t.Helper()
	if o.FailureDelay == 0 {
		o.FailureDelay = time.Millisecond
	}
	l := &lab{t: t, s: New(o)}
	t.Cleanup(func() {
		if err := l.s.Close(); err != nil {
			t.Error(err)
		}
	})
	l.must(l.s.AddTarget(testTarget, ""))
	var err error
	l.portal, err = l.s.Listen(context.Background(), netip.MustParseAddrPort("127.0.0.1:0"))
	l.must(err)
	return l
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// add serves a device to everybody under the next number.
func (l *lab) add(d lun.Device) int {
	l.t.Helper()
	n, err := l.s.AddLUN(testTarget, NextLUN, LUN{Device: d, Writable: true})
	l.must(err)
	var g []mask.Grant
	for i := range n + 1 {
		g = append(g, mask.Grant{LUN: uint16(i)})
	}
	l.must(l.s.SetMask(testTarget, mask.Anyone, g...))
	return n
}

// raw is an initiator that can say anything.
type raw struct {
	t     testing.TB
	nc    net.Conn
	rd    *pdu.Reader
	cmdSN uint32
	itt   uint32
	isid  byte
}

func (l *lab) dial() *raw { return l.dialFor(l.t) }

// dialFor is dial on behalf of another test, as fuzzing needs it.
func (l *lab) dialFor(t testing.TB) *raw {
	t.Helper()
	nc, err := net.Dial("tcp", l.portal.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
	return &raw{t: t, nc: nc, rd: pdu.NewReader(nc, 4096, 1<<24), cmdSN: 1, itt: 1}
}

// send writes a PDU with its data.
func (r *raw) send(h *pdu.Header, data []byte) error {
	h.SetDataLen(len(data))
	out := append([]byte(nil), h[:]...)
	if r.rd.HeaderDigest {
		out = append(out, 0, 0, 0, 0)
		pdu.PutDigest(out[48:], pdu.Digest(0, h[:]))
	}
	if len(data) > 0 {
		p := append(bytes.Clone(data), make([]byte, -len(data)&3)...)
		out = append(out, p...)
		if r.rd.DataDigest {
			out = append(out, 0, 0, 0, 0)
			pdu.PutDigest(out[len(out)-4:], pdu.Digest(0, p))
		}
	}
	_, err := r.nc.Write(out)
	return err
}

// recv reads the next PDU.
func (r *raw) recv() (h pdu.Header, data []byte, err error) {
	if err = r.rd.Next(&h); err != nil {
		return h, nil, err
	}
	data = make([]byte, h.DataLen())
	return h, data, r.rd.Read(data)
}

func (r *raw) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// gone waits until the target has ended the connection.
func (r *raw) gone() {
	r.t.Helper()
	for {
		if _, _, err := r.recv(); err != nil {
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				r.t.Error("the connection is still there")
			}
			return
		}
	}
}

// loginPDU sends one login request and returns the status and the keys.
func (r *raw) loginPDU(csg, nsg byte, transit bool, keys ...pdu.Key) (status uint16, out map[string]string, h pdu.Header) {
	r.t.Helper()
	var q pdu.Header
	flags := csg<<2 | nsg
	if transit {
		flags |= pdu.FlagFinal
	}
	q.Set(pdu.OpLogin|0x40, flags)
	q.SetISID([6]byte{0x80, 1, 2, 3, 4, r.isid})
	q.SetITT(99)
	binary.BigEndian.PutUint32(q[24:], r.cmdSN)
	r.must(r.send(&q, pdu.AppendText(nil, keys...)))
	h, data, err := r.recv()
	r.must(err)
	if h.Opcode() != pdu.OpLoginResp {
		r.t.Fatalf("answer to login: %s", &h)
	}
	ks, err := pdu.ParseText(data)
	r.must(err)
	out = map[string]string{}
	for _, k := range ks {
		out[k.Name] = k.Value
	}
	return binary.BigEndian.Uint16(h[36:]), out, h
}

func names(initiator iscsi.Name, more ...pdu.Key) []pdu.Key {
	return append([]pdu.Key{{Name: "InitiatorName", Value: string(initiator)}, {Name: "TargetName", Value: string(testTarget)}}, more...)
}

// login goes straight to full feature phase.
func (l *lab) login(initiator iscsi.Name, keys ...pdu.Key) *raw {
	l.t.Helper()
	r := l.dial()
	r.start(initiator, keys...)
	return r
}

func (r *raw) start(initiator iscsi.Name, keys ...pdu.Key) {
	r.t.Helper()
	st, out, _ := r.loginPDU(1, 3, true, names(initiator, keys...)...)
	if st != 0 {
		r.t.Fatalf("login status %04x", st)
	}
	r.rd.HeaderDigest = out["HeaderDigest"] == "CRC32C"
	r.rd.DataDigest = out["DataDigest"] == "CRC32C"
}

// logout ends the session as agreed.
func (r *raw) logout() {
	r.t.Helper()
	var h pdu.Header
	h.Set(pdu.OpLogout|0x40, pdu.FlagFinal)
	h.SetITT(3)
	binary.BigEndian.PutUint32(h[24:], r.cmdSN)
	r.must(r.send(&h, nil))
	if a, _, err := r.recv(); err != nil || a.Opcode() != pdu.OpLogoutResp || a[2] != 0 {
		r.t.Errorf("logout: %v %s response %d", err, &a, a[2])
	}
	r.gone()
}

// command sends a SCSI command with immediate data.
func (r *raw) command(lun int, flags byte, cdb []byte, edtl uint32, imm []byte) uint32 {
	r.t.Helper()
	var h pdu.Header
	h.Set(pdu.OpSCSICommand, flags)
	h.SetLUN(uint64(lun) << 48)
	r.itt++
	h.SetITT(r.itt)
	binary.BigEndian.PutUint32(h[20:], edtl)
	binary.BigEndian.PutUint32(h[24:], r.cmdSN)
	r.cmdSN++
	copy(h[32:], cdb)
	r.must(r.send(&h, imm))
	return r.itt
}

// answer collects Data-In until the status of a command has come.
func (r *raw) answer(itt uint32) (status byte, data, sense []byte) {
	r.t.Helper()
	for {
		h, d, err := r.recv()
		r.must(err)
		if h.ITT() != itt {
			continue
		}
		switch h.Opcode() {
		case pdu.OpDataIn:
			if int(h.Offset()) != len(data) {
				r.t.Fatalf("Data-In at %d, %d bytes so far", h.Offset(), len(data))
			}
			data = append(data, d...)
			if h.Flags()&pdu.FlagStatus != 0 {
				return h[3], data, nil
			}
		case pdu.OpSCSIResponse:
			return h[3], data, d
		default:
			r.t.Fatalf("unexpected %s", &h)
		}
	}
}

const (
	ioRead  = pdu.FlagFinal | pdu.FlagRead
	ioWrite = pdu.FlagFinal | pdu.FlagWrite
)

func cdb10(op byte, lba uint32, n uint16) []byte {
	c := make([]byte, 16)
	c[0] = op
	binary.BigEndian.PutUint32(c[2:], lba)
	binary.BigEndian.PutUint16(c[7:], n)
	return c
}

// ready swallows unit attentions until TEST UNIT READY is good.
func (r *raw) ready(lun int) {
	r.t.Helper()
	for range 20 {
		if st, _, _ := r.answer(r.command(lun, pdu.FlagFinal, make([]byte, 16), 0, nil)); st == 0 {
			return
		}
	}
	r.t.Fatalf("LUN %d does not become ready", lun)
}

// alive proves that the server works for a newcomer.
func (l *lab) alive(lun int) {
	l.t.Helper()
	r := l.login(bob)
	r.ready(lun)
	block := bytes.Repeat([]byte("alive..."), 64)
	if st, _, _ := r.answer(r.command(lun, ioWrite, cdb10(0x2a, 1, 1), 512, block)); st != 0 {
		l.t.Fatalf("write: status %d", st)
	}
	if st, got, _ := r.answer(r.command(lun, ioRead, cdb10(0x28, 1, 1), 512, nil)); st != 0 || !bytes.Equal(got, block) {
		l.t.Fatalf("read: status %d, %d bytes", st, len(got))
	}
	r.nc.Close()
}

// eventually polls until ok, or fails after a minute.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// netipAddr is a different address for each number.
func netipAddr(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1)
}

package initiator

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cleave-san/cleave/iscsi/pdu"
)

// peer is a target that can say anything: it logs in everybody and is a disk of 1
// MiB of zeroes, but for what hooks do in its place.
type peer struct {
	t    testing.TB
	addr string

	login   atomic.Pointer[loginHook]   // answers a login request in its place
	command atomic.Pointer[commandHook] // takes a PDU in its place

	mu      sync.Mutex
	serial  string
	logins  int
	window  uint32 // commands that an initiator may send at once
	uas     [][]byte
	conns   map[net.Conn]bool
	replies []pdu.Key // to the operational stage
	group   string
	wg      sync.WaitGroup
}

// Hooks report whether they did it.
type (
	loginHook   func(c *peerConn, h *pdu.Header, keys []pdu.Key) bool
	commandHook func(c *peerConn, h *pdu.Header, data []byte) bool
)

func (p *peer) onLogin(fn loginHook)     { p.login.Store(&fn) }
func (p *peer) onCommand(fn commandHook) { p.command.Store(&fn) }

// peerConn is one connection to it.
type peerConn struct {
	p      *peer
	nc     io.ReadWriteCloser
	rd     *pdu.Reader
	statSN uint32
	cmdSN  uint32 // last
	number int    // of the connection
	uas    [][]byte
	hd, dd bool
}

func newPeer(t testing.TB) *peer {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{t: t, addr: l.Addr().String(), serial: "one", window: 64, conns: map[net.Conn]bool{}, group: "1"}
	p.wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			p.conns[nc] = true
			p.logins++
			c := p.conn(nc)
			p.mu.Unlock()
			p.wg.Go(func() {
				defer nc.Close()
				c.serve()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		for nc := range p.conns {
			nc.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

func (p *peer) conn(nc io.ReadWriteCloser) *peerConn {
	return &peerConn{p: p, nc: nc, rd: pdu.NewReader(nc, 4096, 1<<20), number: p.logins, uas: p.uas}
}

func (p *peer) options() Options {
	return Options{Portals: []string{p.addr}, Target: testTarget, Initiator: alice, Recovery: 5 * time.Second, Timeout: 5 * time.Second}
}

func (c *peerConn) serve() {
	var h pdu.Header
	full := false
	for c.rd.Next(&h) == nil {
		data := make([]byte, h.DataLen())
		if c.rd.Read(data) != nil {
			return
		}
		if !full {
			if full = c.loggedIn(&h, data); full {
				c.rd.HeaderDigest, c.rd.DataDigest = c.hd, c.dd
			}
			continue
		}
		if h.Opcode() == pdu.OpSCSICommand {
			c.cmdSN = h.CmdSN()
		}
		if fn := c.p.command.Load(); fn == nil || !(*fn)(c, &h, data) {
			c.answer(&h)
		}
	}
}

// loggedIn answers one login request, and reports whether it was the last.
func (c *peerConn) loggedIn(h *pdu.Header, data []byte) bool {
	keys, _ := pdu.ParseText(data)
	c.cmdSN = h.CmdSN() - 1
	if fn := c.p.login.Load(); fn != nil && (*fn)(c, h, keys) {
		return false
	}
	var out []pdu.Key
	switch h.Flags() >> 2 & 3 {
	case stageSecurity:
		out = []pdu.Key{{Name: "AuthMethod", Value: "None"}, {Name: "TargetPortalGroupTag", Value: c.p.group}}
	default:
		out = append([]pdu.Key{{Name: "DefaultTime2Wait", Value: "0"}}, c.p.replies...)
		for _, k := range c.p.replies {
			c.hd = c.hd || k == pdu.Key{Name: "HeaderDigest", Value: "CRC32C"}
			c.dd = c.dd || k == pdu.Key{Name: "DataDigest", Value: "CRC32C"}
		}
	}
	c.loginResponse(h, h.Flags(), 0, 0, out...)
	return h.Flags()&3 == stageFull
}

func (c *peerConn) loginResponse(q *pdu.Header, flags, class, detail uint8, keys ...pdu.Key) {
	var h pdu.Header
	h.Set(pdu.OpLoginResp, flags)
	h.SetISID(q.ISID())
	h.SetTSIH(1)
	h.SetITT(q.ITT())
	h[36], h[37] = class, detail
	c.sendStatus(&h, pdu.AppendText(nil, keys...))
}

// send writes a PDU as it is.
func (c *peerConn) send(h *pdu.Header, data []byte) {
	c.raw(h, data, len(data), 0, 0)
}

// raw lies about the length, and spoils the digests.
func (c *peerConn) raw(h *pdu.Header, data []byte, length int, spoilHeader, spoilData byte) {
	h.SetDataLen(length)
	h.SetWindow(c.cmdSN+1, c.cmdSN+c.p.window)
	out := append([]byte(nil), h[:]...)
	if c.rd.HeaderDigest {
		out = append(out, 0, 0, 0, 0)
		pdu.PutDigest(out[48:], pdu.Digest(0, h[:]))
		out[48] ^= spoilHeader
	}
	if len(data) > 0 {
		padded := append(append([]byte(nil), data...), make([]byte, -len(data)&3)...)
		out = append(out, padded...)
		if c.rd.DataDigest {
			out = append(out, 0, 0, 0, 0)
			pdu.PutDigest(out[len(out)-4:], pdu.Digest(0, padded))
			out[len(out)-1] ^= spoilData
		}
	}
	_, _ = c.nc.Write(out)
}

// sendStatus is send for a PDU that takes a StatSN.
func (c *peerConn) sendStatus(h *pdu.Header, data []byte) {
	c.statSN++
	h.SetStatSN(c.statSN)
	c.send(h, data)
}

// status ends a command.
func (c *peerConn) status(q *pdu.Header, status byte, sense []byte) {
	h := responseTo(q, status)
	if sense != nil {
		sense = append([]byte{0, byte(len(sense))}, sense...)
	}
	c.sendStatus(&h, sense)
}

func responseTo(q *pdu.Header, status byte) (h pdu.Header) {
	h.Set(pdu.OpSCSIResponse, pdu.FlagFinal)
	h[3] = status
	h.SetITT(q.ITT())
	return h
}

// data answers a command with data and good status.
func (c *peerConn) data(q *pdu.Header, data []byte) {
	var h pdu.Header
	data = data[:min(len(data), int(q.EDTL()))]
	h.Set(pdu.OpDataIn, pdu.FlagFinal|pdu.FlagStatus)
	if missing := q.EDTL() - uint32(len(data)); missing > 0 {
		h.SetFlags(pdu.FlagFinal | pdu.FlagStatus | pdu.FlagUnderflow)
		h.SetResidual(missing)
	}
	h.SetITT(q.ITT())
	h.SetTTT(pdu.NoTag)
	c.sendStatus(&h, data)
}

func fixedSense(key, asc, ascq byte) []byte {
	return []byte{0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0}
}

// answer is what a decent target does.
func (c *peerConn) answer(h *pdu.Header) {
	switch h.Opcode() {
	case pdu.OpSCSICommand:
	case pdu.OpNopOut:
		if h.ITT() != pdu.NoTag {
			var r pdu.Header
			r.Set(pdu.OpNopIn, pdu.FlagFinal)
			r.SetITT(h.ITT())
			r.SetTTT(pdu.NoTag)
			c.sendStatus(&r, nil)
		}
		return
	case pdu.OpLogout:
		var r pdu.Header
		r.Set(pdu.OpLogoutResp, pdu.FlagFinal)
		r.SetITT(h.ITT())
		c.sendStatus(&r, nil)
		return
	default:
		return
	}
	if len(c.uas) > 0 && h.CDB()[0] != opInquiry {
		sense := c.uas[0]
		c.uas = c.uas[1:]
		c.status(h, 2, sense)
		return
	}
	switch cdb := h.CDB(); cdb[0] {
	case opInquiry:
		c.data(h, c.inquiry(cdb))
	case opServiceIn16:
		b := make([]byte, 32)
		binary.BigEndian.PutUint64(b, 1<<20/512-1)
		binary.BigEndian.PutUint32(b[8:], 512)
		c.data(h, b)
	case opModeSense6:
		c.data(h, []byte{23, 0, 0, 0, 8, 18, 4, 19: 0})
	case opRead10, opRead16:
		c.data(h, make([]byte, h.EDTL()))
	default:
		c.status(h, 0, nil)
	}
}

func (c *peerConn) inquiry(cdb []byte) []byte {
	if cdb[1]&1 == 0 {
		b := make([]byte, 36)
		copy(b[8:], "PEER    HOSTILE         1   ")
		return b
	}
	var body []byte
	switch cdb[2] {
	case 0x00:
		body = []byte{0x00, 0x80, 0x83}
	case 0x80:
		c.p.mu.Lock()
		body = []byte(c.p.serial)
		c.p.mu.Unlock()
	case 0x83:
		body = []byte{1, 3, 0, 8, 0x60, 1, 2, 3, 4, 5, 6, 7}
	}
	return append([]byte{0, cdb[2], 0, byte(len(body))}, body...)
}

package initiator

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/iscsi/target"
	"github.com/cleave-san/cleave/lun"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testTarget iscsi.Name = "iqn.2026-01.test:disk"
	alice      iscsi.Name = "iqn.2026-01.test:alice"
)

// memory is a device in memory. Trimmed blocks are holes until written.
type memory struct {
	mu    sync.RWMutex
	data  []byte
	block int
	holes map[int64]bool // by 4 KiB
	syncs atomic.Int32
}

func newMemory(size int) *memory { return &memory{data: make([]byte, size), block: 512} }

func (m *memory) Size() int64                     { return int64(len(m.data)) }
func (m *memory) Blocks() (logical, physical int) { return m.block, 4096 }

func (m *memory) Sync() error {
	m.syncs.Add(1)
	return nil
}

// content is a copy of what is there.
func (m *memory) content() []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return bytes.Clone(m.data)
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), m.Size()); err != nil {
		return 0, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	return copy(p, m.data[off:]), nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), m.Size()); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for b := off >> 12; b<<12 < off+int64(len(p)); b++ {
		delete(m.holes, b)
	}
	return copy(m.data[off:], p), nil
}

// thin is a memory that gives space back.
type thin struct{ *memory }

func (m thin) Trim(off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.data[off : off+n])
	if m.holes == nil {
		m.holes = map[int64]bool{}
	}
	for b := (off + 4095) >> 12; (b+1)<<12 <= off+n; b++ {
		m.holes[b] = true
	}
	return nil
}

func (m thin) Extents(off, n int64, fn func(lun.Extent) error) error {
	m.mu.RLock()
	var out []lun.Extent
	for end := off + n; off < end; {
		e := lun.Extent{Off: off, Len: min(end-off, 4096-off&4095), Hole: m.holes[off>>12]}
		if k := len(out) - 1; k >= 0 && out[k].Hole == e.Hole {
			out[k].Len += e.Len
		} else {
			out = append(out, e)
		}
		off += e.Len
	}
	m.mu.RUnlock()
	for _, e := range out {
		if err := fn(e); err != nil {
			return err
		}
	}
	return nil
}

// lab is a target of ours, reached through a relay that can cut.
type lab struct {
	t testing.TB
	s *target.Server
	r *relay
}

func newLab(t testing.TB, o target.Options) *lab {
	t.Helper()
	if o.FailureDelay == 0 {
		o.FailureDelay = time.Millisecond
	}
	l := &lab{t: t, s: target.New(o)}
	t.Cleanup(func() {
		if err := l.s.Close(); err != nil {
			t.Error(err)
		}
	})
	l.must(l.s.AddTarget(testTarget, ""))
	at, err := l.s.Listen(context.Background(), netip.MustParseAddrPort("127.0.0.1:0"))
	l.must(err)
	l.r = newRelay(t, at.String())
	return l
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// add serves a device to everybody.
func (l *lab) add(d lun.Device, id lun.Identity) int {
	l.t.Helper()
	n, err := l.s.AddLUN(testTarget, target.NextLUN, target.LUN{Device: d, Writable: true, Identity: id})
	l.must(err)
	l.must(l.s.SetMask(testTarget, mask.Anyone, mask.Grant{LUN: uint16(n)}))
	return n
}

func (l *lab) options() Options {
	return Options{Portals: []string{l.r.addr}, Target: testTarget, Initiator: alice, Recovery: 20 * time.Second}
}

func (l *lab) open(o Options) *Disk {
	l.t.Helper()
	return open(l.t, o)
}

func open(t testing.TB, o Options) *Disk {
	t.Helper()
	d, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// relay passes connections on to a target, until they are cut.
type relay struct {
	addr  string
	to    string
	mu    sync.Mutex
	conns map[net.Conn]bool
	down  bool
	after int64 // bytes that the target may still say; negative: no limit
	wg    sync.WaitGroup
}

func newRelay(t testing.TB, to string) *relay {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{addr: l.Addr().String(), to: to, conns: map[net.Conn]bool{}, after: -1}
	r.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.wg.Go(func() { r.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		r.cut()
		r.wg.Wait()
	})
	return r
}

func (r *relay) serve(c net.Conn) {
	r.mu.Lock()
	down := r.down
	to := r.to
	r.mu.Unlock()
	var d net.Conn
	var err error
	if !down {
		d, err = net.Dial("tcp", to)
	}
	if down || err != nil {
		c.Close()
		return
	}
	r.mu.Lock()
	r.conns[c], r.conns[d] = true, true
	r.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { r.pass(d, c, false) })
	both.Go(func() { r.pass(c, d, true) })
	both.Wait()
	r.mu.Lock()
	delete(r.conns, c)
	delete(r.conns, d)
	r.mu.Unlock()
}

func (r *relay) pass(dst, src net.Conn, counted bool) {
	defer dst.Close()
	defer src.Close()
	b := make([]byte, 32<<10)
	for {
		n, err := src.Read(b)
		if n > 0 && counted {
			r.mu.Lock()
			if r.after >= 0 {
				if r.after -= int64(n); r.after < 0 {
					n += int(r.after)
					r.after = -1
					err = net.ErrClosed
				}
			}
			r.mu.Unlock()
		}
		if n > 0 {
			if _, werr := dst.Write(b[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// cut ends all connections.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		c.Close()
	}
}

// cutAfter ends the connection once the target has said so many more bytes.
func (r *relay) cutAfter(n int64) {
	r.mu.Lock()
	r.after = n
	r.mu.Unlock()
}

func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i>>9)*31 + byte(i) + seed
	}
	return p
}

func mustRead(t testing.TB, d lun.Device, off int64, want []byte) {
	t.Helper()
	p := make([]byte, len(want))
	if _, err := d.ReadAt(p, off); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, want) {
		t.Fatalf("%d bytes at %d are not what was written", len(p), off)
	}
}

func mustWrite(t testing.TB, d lun.Device, off int64, p []byte) {
	t.Helper()
	if _, err := d.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

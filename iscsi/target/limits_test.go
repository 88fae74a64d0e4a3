package target

import (
	"bytes"
	"encoding/binary"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cleave-san/cleave/iscsi/pdu"
)

// dialAs is dial from an address of the loopback net.
func (l *lab) dialAs(from string) *raw {
	l.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	nc, err := d.Dial("tcp", l.portal.String())
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
	return &raw{t: l.t, nc: nc, rd: pdu.NewReader(nc, 4096, 1<<24), cmdSN: 1, itt: 1}
}

func (l *lab) joining() int {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	return len(l.s.joining)
}

// An address that floods the server with logins that never end displaces its own,
// and nobody else's.
func TestFloodDisplacesItself(t *testing.T) {
	l := newLab(t, Options{MaxLogins: 8, MaxLoginsPerAddress: 4, LoginTimeout: time.Minute})
	l.add(newDisk(1 << 20))
	slow := l.dialAs("127.0.0.3") // in the middle of its login all the time
	if st, _, _ := slow.loginPDU(0, 1, true, names(alice)...); st != 0 {
		t.Fatalf("status %04x", st)
	}
	var flood []*raw
	for range 100 {
		flood = append(flood, l.dialAs("127.0.0.2"))
	}
	for _, r := range flood[:96] {
		r.gone()
	}
	if n := l.joining(); n != 5 {
		t.Errorf("%d log in, want 4 and 1", n)
	}
	if st, _, _ := slow.loginPDU(1, 3, true); st != 0 {
		t.Errorf("the patient one: status %04x", st)
	}
	slow.ready(0)
	same := l.dialAs("127.0.0.2") // an honest one from there
	same.start(bob)
	same.ready(0)
}

// Sessions are not displaced, and no more are let in than there may be.
func TestConnectionLimit(t *testing.T) {
	l := newLab(t, Options{MaxConnections: 4})
	l.add(newDisk(1 << 20))
	var all []*raw
	for i := range 4 {
		r := l.dial()
		r.isid = byte(i)
		r.start(alice)
		all = append(all, r)
	}
	l.dial().gone()
	for _, r := range all {
		r.ready(0)
	}
	all[0].logout()
	eventually(t, "room again", func() bool { return len(l.s.Sessions()) == 3 })
	l.alive(0)
}

// A peer that asks and asks and reads nothing is answered so much and no more; its
// connection ends.
func TestPeerThatNeverReads(t *testing.T) {
	l := newLab(t, Options{NopInterval: 50 * time.Millisecond})
	l.add(newDisk(16 << 20))
	ping := func(h *pdu.Header) { h.Set(pdu.OpNopOut|0x40, pdu.FlagFinal) }
	for name, storm := range map[string]func(h *pdu.Header){
		"pings": ping,
		"rejects": func(h *pdu.Header) {
			h.Set(0x1f|0x40, pdu.FlagFinal)
		},
		"resets": func(h *pdu.Header) {
			h.Set(pdu.OpTaskMgmt|0x40, pdu.FlagFinal|tmfLUNReset)
		},
		"text": func(h *pdu.Header) { h.Set(pdu.OpText|0x40, pdu.FlagFinal); h.SetTTT(pdu.NoTag) },
		"logouts of another": func(h *pdu.Header) {
			h.Set(pdu.OpLogout|0x40, pdu.FlagFinal|2)
		},
		"commands to nowhere": func(h *pdu.Header) {
			h.Set(pdu.OpSCSICommand|0x40, pdu.FlagFinal)
			h.SetLUN(99 << 48)
		},
		"full queue": func(h *pdu.Header) { h.Set(pdu.OpSCSICommand|0x40, ioRead); copy(h[32:], cdb10(0x28, 0, 1024)) },
	} {
		t.Run(name, func(t *testing.T) {
			r := l.dialFor(t)
			r.start(alice)
			var h pdu.Header
			storm(&h)
			binary.BigEndian.PutUint32(h[24:], r.cmdSN)
			if h.Opcode() == pdu.OpSCSICommand {
				binary.BigEndian.PutUint32(h[20:], 512<<10)
			}
			over := make(chan struct{})
			go func() {
				defer close(over)
				for i := uint32(0); ; i++ {
					h.SetITT(i)
					if _, err := r.nc.Write(h[:]); err != nil {
						return
					}
				}
			}()
			var most int
			eventually(t, "it is dropped", func() bool {
				l.s.mu.Lock()
				defer l.s.mu.Unlock()
				for c := range l.s.conns {
					most = max(most, int(c.tx.waiting.Load()))
				}
				return len(l.s.sessions) == 0
			})
			r.nc.Close()
			<-over
			if most > maxWaiting+maxTasks {
				t.Errorf("%d PDUs wait", most)
			}
		})
	}
	l.alive(0)
}

// slow is a disk that does one thing at a time.
type slow struct {
	*disk
	one   sync.Mutex
	calls atomic.Int64
}

func (s *slow) ReadAt(p []byte, off int64) (int, error) {
	s.one.Lock()
	defer s.one.Unlock()
	s.calls.Add(1)
	return s.disk.ReadAt(p, off)
}

// A session with a deep queue leaves another its turn: of a device that does one
// thing at a time the modest one gets its answers, each after about as many of
// the greedy one's as there are workers, not after its whole queue.
func TestFairness(t *testing.T) {
	l := newLab(t, Options{})
	d := &slow{disk: newDisk(16 << 20)}
	l.add(d)
	greedy, modest := l.login(alice), l.login(bob)
	greedy.ready(0)
	modest.ready(0)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 120 {
			greedy.command(0, ioRead, cdb10(0x28, 0, 8), 4096, nil)
		}
		for {
			h, _, err := greedy.recv()
			if err != nil {
				return
			}
			if h.Flags()&pdu.FlagStatus == 0 {
				continue
			}
			select {
			case <-stop:
				return
			default:
				greedy.command(0, ioRead, cdb10(0x28, 0, 8), 4096, nil)
			}
		}
	})
	eventually(t, "the greedy one is at work", func() bool { return d.calls.Load() > 1000 })
	const n = 200
	before := d.calls.Load()
	for range n {
		if st, _, _ := modest.answer(modest.command(0, ioRead, cdb10(0x28, 0, 8), 4096, nil)); st != 0 {
			t.Fatalf("status %d", st)
		}
	}
	turns := (d.calls.Load() - before) / n
	close(stop)
	wg.Wait() // before the connection goes: a command may be on its way
	greedy.nc.Close()
	t.Logf("%d commands of the greedy session for each of the modest one", turns)
	if turns > 1000 {
		t.Errorf("%d of the greedy session's commands for one of the modest one's", turns)
	}
}

// Writes that are longer than there is memory for all of them are done one after
// the other.
func TestWritesShareMemory(t *testing.T) {
	l := newLab(t, Options{Memory: 1 << 20})
	d := newDisk(16 << 20)
	l.add(d)
	var wg sync.WaitGroup
	var most atomic.Int64
	for i := range 8 {
		wg.Go(func() {
			r := l.dial()
			r.isid = byte(i)
			r.start(alice)
			for range 9 { // unit attentions of this and of the others
				r.answer(r.command(0, pdu.FlagFinal, make([]byte, 16), 0, nil))
			}
			p := bytes.Repeat([]byte{byte(i + 1)}, 1<<20)
			for range 5 {
				itt := r.command(0, ioWrite, cdb10(0x2a, uint32(i)*2048, 2048), 1<<20, nil)
				r.feed(itt, p)
				l.s.big.mu.Lock()
				most.Store(max(most.Load(), 1<<20-l.s.big.left))
				l.s.big.mu.Unlock()
			}
		})
	}
	wg.Wait()
	if left := l.s.big.left; left != 1<<20 {
		t.Errorf("%d bytes of the budget left at the end", left)
	}
	for i := range 8 {
		if p := d.content()[i<<20 : (i+1)<<20]; bytes.Count(p, []byte{byte(i + 1)}) != len(p) {
			t.Errorf("writer %d: wrong bytes", i)
		}
	}
}

// An initiator that keeps the memory of others for data that it doesn't send is
// dropped.
func TestHoarderIsDropped(t *testing.T) {
	l := newLab(t, Options{Memory: 1 << 20, NopInterval: 20 * time.Millisecond})
	l.add(newDisk(16 << 20))
	r := l.login(alice)
	r.ready(0)
	r.command(0, ioWrite, cdb10(0x2a, 0, 4096), 2<<20, nil)
	for {
		h, _, err := r.recv()
		if err != nil {
			break
		}
		if h.Opcode() != pdu.OpNopIn {
			continue
		}
		var a pdu.Header // it is alive
		a.Set(pdu.OpNopOut|0x40, pdu.FlagFinal)
		a.SetITT(pdu.NoTag)
		a.SetTTT(h.TTT())
		binary.BigEndian.PutUint32(a[24:], r.cmdSN)
		_ = r.send(&a, nil)
	}
	eventually(t, "its memory is back", func() bool {
		l.s.big.mu.Lock()
		defer l.s.big.mu.Unlock()
		return l.s.big.left == 1<<20
	})
	l.alive(0)
}

// Logins and logouts leave nothing behind. The lab does it a hundred thousand
// times (integration/iscsilab).
func TestLoginsLeaveNothing(t *testing.T) {
	n := 5000
	if testing.Short() || race {
		n = 500
	}
	l := newLab(t, Options{})
	l.add(newDisk(1 << 20))
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // what pools held
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	round := func(n int) {
		for i := range n {
			r := &raw{t: t, cmdSN: 1, itt: 1, isid: byte(i)}
			var err error
			if r.nc, err = net.Dial("tcp", l.portal.String()); err != nil {
				t.Fatal(err)
			}
			_ = r.nc.SetDeadline(time.Now().Add(20 * time.Second))
			r.rd = pdu.NewReader(r.nc, 4096, 1<<24)
			r.start(alice)
			r.ready(0)
			if i%3 > 0 {
				r.logout()
			}
			r.nc.Close()
		}
		eventually(t, "sessions have ended", func() bool {
			l.s.mu.Lock()
			defer l.s.mu.Unlock()
			return len(l.s.sessions)+len(l.s.conns) == 0
		})
	}
	round(n / 10)
	before, goroutines := heap(), runtime.NumGoroutine()
	round(n)
	after := heap()
	t.Logf("heap %d KiB before, %d KiB after %d logins", before>>10, after>>10, n)
	if after > before+1<<20 {
		t.Errorf("heap grew from %d to %d bytes over %d logins", before, after, n)
	}
	if g := runtime.NumGoroutine(); g > goroutines+2 {
		t.Errorf("%d goroutines, %d before", g, goroutines)
	}
}

// Long writes that wait for each other's memory leave room for the data that the
// next ones bring along: none is refused.
func TestLongWritesLeaveRoom(t *testing.T) {
	l := newLab(t, Options{})
	d := newDisk(40 << 20)
	l.add(d)
	r := l.login(alice)
	r.ready(0)
	const n, size, first = 40, 1 << 20, 64 << 10
	which := map[uint32]byte{}
	for i := range byte(n) {
		which[r.command(0, ioWrite, cdb10(0x2a, uint32(i)*2048, 2048), size, bytes.Repeat([]byte{i + 1}, first))] = i
	}
	for left := n; left > 0; {
		h, _, err := r.recv()
		r.must(err)
		switch h.Opcode() {
		case pdu.OpSCSIResponse:
			if h[3] != 0 {
				t.Fatalf("write %d: status %#x", which[h.ITT()], h[3])
			}
			left--
		case pdu.OpR2T:
			p := bytes.Repeat([]byte{which[h.ITT()] + 1}, int(h.Residual())) // the desired length stands there
			var q pdu.Header
			q.Set(pdu.OpDataOut, pdu.FlagFinal)
			q.SetITT(h.ITT())
			q.SetTTT(h.TTT())
			q.SetOffset(h.Offset())
			r.must(r.send(&q, p))
		default:
			t.Fatalf("unexpected %s", &h)
		}
	}
	for i := range n {
		if p := d.content()[i*size : (i+1)*size]; bytes.Count(p, []byte{byte(i + 1)}) != size {
			t.Errorf("write %d: wrong bytes", i)
		}
	}
}

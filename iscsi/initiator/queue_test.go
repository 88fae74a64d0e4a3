package initiator

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/iscsi/pdu"
	"github.com/cleave-san/cleave/iscsi/target"
	"github.com/cleave-san/cleave/lun"
)

// rounds writes patterns through a queue and reads them back, depth requests at
// once, until done says so.
func rounds(t *testing.T, d *Disk, base int64, seed uint64, depth int, done func(requests int) bool) {
	r := rand.New(rand.NewPCG(7, seed))
	q := d.NewQueue()
	const room = 64 << 10
	type place struct {
		p, got  []byte
		off     int64
		writing bool
	}
	places := make([]place, depth)
	requests := 0
	write := func(i int) {
		// Most are whole blocks; some are not, and take the other way.
		n, at := (1+r.IntN(room/2/512))*512, int64(0)
		if r.IntN(10) == 0 {
			n, at = n-r.IntN(512), r.Int64N(512)
		}
		e := &places[i]
		e.p, e.off, e.writing = pattern(n, byte(r.Uint32())), base+int64(i)*room+at, true
		e.got = make([]byte, n)
		q.Write(e.p, e.off, i)
	}
	for i := range places {
		write(i)
	}
	for {
		e, ok := q.Wait()
		if !ok {
			return
		}
		if e.Err != nil {
			t.Errorf("%v", e.Err)
			continue
		}
		requests++
		k := &places[e.Tag]
		switch {
		case k.writing:
			k.writing = false
			q.Read(k.got, k.off, e.Tag)
		case !bytes.Equal(k.p, k.got):
			t.Errorf("%d bytes at %d are not what was written", len(k.p), k.off)
		case !done(requests):
			write(e.Tag)
		}
	}
}

// More requests than there may be commands; all end, and every byte is right, with
// other queues and other callers beside.
func TestQueue(t *testing.T) {
	l := newLab(t, target.Options{})
	l.add(newMemory(32<<20), lun.NewIdentity())
	for _, depth := range []int{1, 4, 128} {
		o := l.options()
		o.Depth = depth
		d := l.open(o)
		ended := make(chan bool)
		for i := range 3 {
			go func() {
				rounds(t, d, int64(i)*4<<20, uint64(i), 60, func(n int) bool { return n > 1000 })
				ended <- true
			}()
		}
		go func() {
			for k := range 200 {
				mustWrite(t, d, 16<<20, pattern(5000, byte(k)))
				mustRead(t, d, 16<<20, pattern(5000, byte(k)))
			}
			ended <- true
		}()
		for range 4 {
			<-ended
		}
	}
}

// The connection is cut again and again.
func TestQueueCuts(t *testing.T) {
	l := newLab(t, target.Options{})
	l.add(newMemory(8<<20), lun.NewIdentity())
	d := l.open(l.options())
	var enough atomic.Bool
	var requests atomic.Int64
	ended := make(chan bool)
	go func() {
		rounds(t, d, 0, 1, 100, func(int) bool { requests.Add(1); return enough.Load() })
		close(ended)
	}()
	r := rand.New(rand.NewPCG(3, 4))
	for range 20 {
		before, old := requests.Load(), d.cur.Load()
		if r.IntN(2) == 0 {
			l.r.cut()
		} else {
			l.r.cutAfter(r.Int64N(300 << 10))
		}
		eventually(t, "a new session that works", func() bool {
			return t.Failed() || d.cur.Load() != old && requests.Load() > before+200
		})
	}
	enough.Store(true)
	<-ended
}

// What is wrong with a request is told by Wait, whatever finds it out.
func TestQueueErrors(t *testing.T) {
	p := newPeer(t)
	d := open(t, p.options())
	q := d.NewQueue()
	if _, ok := q.Wait(); ok {
		t.Error("an empty queue has something to tell")
	}
	q.Read(make([]byte, 512), d.Size(), 7)
	if e, ok := q.Wait(); !ok || e.Tag != 7 || !errors.Is(e.Err, lun.ErrOutOfRange) {
		t.Errorf("past the end: %+v %t", e, ok)
	}
	p.once(func(c *peerConn, h *pdu.Header) { c.status(h, 2, fixedSense(byte(MediumError), 0x11, 0)) })
	q.Read(make([]byte, 512), 0, 8)
	var sense *SenseError
	if e, _ := q.Wait(); e.Tag != 8 || !errors.As(e.Err, &sense) || sense.Key != MediumError {
		t.Errorf("medium error: %+v", e)
	}
	p.once(func(c *peerConn, h *pdu.Header) { c.status(h, 8, nil) })
	q.Write(make([]byte, 512), 0, 9)
	if e, _ := q.Wait(); e.Tag != 9 || e.Err != nil {
		t.Errorf("busy once: %+v", e)
	}
	p.once(func(c *peerConn, h *pdu.Header) {
		p.mu.Lock()
		p.serial = "two"
		p.mu.Unlock()
		answer := dataIn(h, 0, 0, good)
		c.sendStatus(&answer, make([]byte, 512))
		c.nc.Close()
	})
	q.Read(make([]byte, 512), 0, 10)
	q.Write(make([]byte, 512), 512, 11)
	for range 2 {
		if e, _ := q.Wait(); e.Tag == 11 && !errors.Is(e.Err, ErrIdentity) {
			t.Errorf("exchanged: %+v", e)
		}
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	q.Write(make([]byte, 512), 0, 12)
	if e, _ := q.Wait(); !errors.Is(e.Err, lun.ErrClosed) {
		t.Errorf("closed: %+v", e)
	}
}

// An exchange of the LUN that came to light before an answer was told makes it
// worth nothing.
func TestQueueDoubts(t *testing.T) {
	p := newPeer(t)
	d := open(t, p.options())
	q := d.NewQueue()
	q.Read(make([]byte, 512), 0, 1)
	s := d.cur.Load()
	s.attend()
	eventually(t, "the answer", q.any)
	p.mu.Lock()
	p.serial = "two"
	p.mu.Unlock()
	s.doubts.Add(1)
	if e, ok := q.Wait(); !ok || !errors.Is(e.Err, ErrIdentity) {
		t.Errorf("%+v %t", e, ok)
	}
}

// Who has requests under way and does something else holds up nobody: neither a
// writer of parts of blocks, nor callers who wait for room, nor a target's pings.
func TestQueueLeftAlone(t *testing.T) {
	p := newPeer(t)
	var pongs atomic.Int32
	p.onCommand(func(c *peerConn, h *pdu.Header, _ []byte) bool {
		if h.Opcode() == pdu.OpNopOut && h.ITT() == pdu.NoTag {
			pongs.Add(1)
			return true
		}
		if h.Opcode() == pdu.OpSCSICommand {
			var ping pdu.Header
			ping.Set(pdu.OpNopIn, pdu.FlagFinal)
			ping.SetITT(pdu.NoTag)
			ping.SetTTT(42)
			c.send(&ping, nil)
		}
		return false
	})
	o := p.options()
	o.Depth = 4
	o.NopInterval = 50 * time.Millisecond
	d := open(t, o)
	q := d.NewQueue()
	for i := range 10 {
		q.Write(make([]byte, 512), int64(i)*512, i)
	}
	mustWrite(t, d, 1<<19, []byte("part"))
	mustRead(t, d, 1<<18, make([]byte, 512))
	eventually(t, "answers to pings", func() bool { return pongs.Load() > 5 })
	for range 10 {
		if e, ok := q.Wait(); !ok || e.Err != nil {
			t.Errorf("%+v %t", e, ok)
		}
	}
}

// A write that is answered while its data is still being sent ends with that: who
// waits for it doesn't wait for the target to say more.
func TestQueueAnsweredEarly(t *testing.T) {
	p := newPeer(t)
	goOn := make(chan bool)
	p.onCommand(func(c *peerConn, h *pdu.Header, _ []byte) bool {
		switch {
		case h.Opcode() == pdu.OpDataOut:
			return true
		case h.Opcode() != pdu.OpSCSICommand || h.CDB()[0] != opWrite10:
			return false
		}
		if err := c.nc.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
			t.Error(err)
		}
		ask := r2t(h, 0, 0, h.EDTL())
		c.send(&ask, nil)
		c.status(h, 0, nil)
		<-goOn // meanwhile nobody takes the data
		return true
	})
	p.replies = []pdu.Key{{Name: "InitialR2T", Value: "Yes"}, {Name: "ImmediateData", Value: "No"}, {Name: "MaxBurstLength", Value: "1048576"}}
	o := p.options()
	o.NopInterval = time.Hour
	d := open(t, o)
	if err := d.cur.Load().nc.raw.Control(func(fd uintptr) {
		if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 64<<10); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	q := d.NewQueue()
	go func() {
		defer close(goOn)
		eventually(t, "an answer before its time", func() bool { return q.late.Load() == 1 })
	}()
	for _, size := range []int{1 << 20, 512} {
		q.Write(make([]byte, size), 0, size)
		if e, ok := q.Wait(); !ok || e.Err != nil || e.Tag != size {
			t.Fatalf("%+v %t", e, ok)
		}
	}
	if n := q.late.Load(); n != 0 {
		t.Errorf("%d requests are late for ever", n)
	}
}

// Requests whose answers nobody has taken yet end with the disk.
func TestQueueClose(t *testing.T) {
	p := newPeer(t)
	p.onCommand(func(_ *peerConn, h *pdu.Header, _ []byte) bool { // silence
		return h.Opcode() == pdu.OpSCSICommand && h.CDB()[0] == opRead10
	})
	d := open(t, p.options())
	q := d.NewQueue()
	q.Read(make([]byte, 512), 0, 1)
	closed := make(chan error)
	go func() {
		eventually(t, "a leader", func() bool {
			s := d.cur.Load()
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.led
		})
		closed <- d.Close()
	}()
	if e, ok := q.Wait(); !ok || !errors.Is(e.Err, lun.ErrClosed) {
		t.Errorf("%+v %t", e, ok)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

// A request allocates nothing once the queue is warm.
func TestQueueAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	l := newLab(t, target.Options{})
	l.add(newMemory(1<<20), lun.NewIdentity())
	d := l.open(l.options())
	q := d.NewQueue()
	var bufs [32][4096]byte
	for name, start := range map[string]func([]byte, int64, int){"read": q.Read, "write": q.Write} {
		n := testing.AllocsPerRun(300, func() {
			for i := range bufs {
				start(bufs[i][:], int64(i)*4096, i)
			}
			for range bufs {
				if e, ok := q.Wait(); !ok || e.Err != nil {
					t.Fatal(e, ok)
				}
			}
		})
		// The target's own share is in it too: a worker now and then.
		if n >= float64(len(bufs))/4 {
			t.Errorf("%s: %.2f allocations for %d requests", name, n, len(bufs))
		}
	}
}

//go:build lab

package iscsilab

import (
	"flag"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"
)

var (
	logins = flag.Int("logins", 100_000, "logins and logouts")
	flood  = flag.Int("flood", 65_536, "connections that never log in")
	load   = flag.Duration("load", 15*time.Second, "how long the sessions are under load")
)

// A hundred thousand logins and logouts leave the server's memory, and the time that
// a command takes, as they were. Every tenth session is cut instead of logged out.
func TestLogins(t *testing.T) {
	s := serve(t, 64<<20)
	round := func(n int) {
		var wg sync.WaitGroup
		const side = 4
		for k := range side {
			wg.Go(func() {
				for i := range n / side {
					c, err := login(from(i), s.portal, fmt.Sprintf("iqn.2026-01.org.example.lab:host-%d", i%50), uint32(k))
					if err == nil {
						err = c.ready()
					}
					if err == nil && i%10 > 0 {
						err = c.logout()
					}
					if err != nil {
						t.Error(err)
						return
					}
					c.nc.Close()
				}
			})
		}
		wg.Wait()
	}
	command := func() time.Duration {
		c, err := login(from(0), s.portal, "iqn.2026-01.org.example.lab:clock", 9)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.ready(); err != nil {
			t.Fatal(err)
		}
		const n = 5000
		begun := time.Now()
		for range n {
			if err := c.start(1, false, 0, 4096); err != nil {
				t.Fatal(err)
			}
			if _, status, err := c.next(nil); err != nil || status != 0 {
				t.Fatal(status, err)
			}
		}
		took := each(time.Since(begun), n)
		if err := c.logout(); err != nil {
			t.Fatal(err)
		}
		return took
	}
	round(*logins / 20)
	before, quick := s.memory("VmRSS"), command()
	begun := time.Now()
	round(*logins)
	took := time.Since(begun)
	after, still := s.memory("VmRSS"), command()
	t.Logf("FIGURE logins: %d, %v each", *logins, each(took, *logins))
	t.Logf("FIGURE server's memory: %s after %d logins, %s after all", mib(before), *logins/20, mib(after))
	t.Logf("FIGURE read of 4 KiB at depth 1: %v before, %v after", quick, still)
	if after > before+16<<20 {
		t.Errorf("memory grew from %s to %s", mib(before), mib(after))
	}
}

// Sixty-four sessions under load, each with eight commands under way, of 4 KiB and of
// 1 MiB, reads and writes, take less than 128 MiB.
func TestSixtyFourSessions(t *testing.T) {
	s := serve(t, 512<<20)
	end := time.Now().Add(*load)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var commands, least int
	for k := range 64 {
		wg.Go(func() {
			n, err := s.work(k, end)
			if err != nil {
				t.Errorf("session %d: %v", k, err)
			}
			mu.Lock()
			defer mu.Unlock()
			commands += n
			if least == 0 || n < least {
				least = n
			}
		})
	}
	wg.Wait()
	peak := s.memory("VmHWM")
	t.Logf("FIGURE server's memory, peak: %s", mib(peak))
	t.Logf("FIGURE commands: %d in %v, the slowest session %d", commands, *load, least)
	if peak >= 128<<20 {
		t.Errorf("peak of %s, want less than 128 MiB", mib(peak))
	}
}

// work is one session under load.
func (s *server) work(k int, end time.Time) (done int, err error) {
	c, err := login(from(k), s.portal, fmt.Sprintf("iqn.2026-01.org.example.lab:host-%d", k), uint32(k))
	if err != nil {
		return 0, err
	}
	if err := c.ready(); err != nil {
		return 0, err
	}
	const depth = 8
	payload := make([]byte, 64<<10)
	next := uint32(k)
	start := func(itt uint32) error {
		next = next*1664525 + 1013904223 // an LCG: the load is the same every time
		size := 4096
		if next>>16&3 == 0 {
			size = 1 << 20
		}
		return c.start(itt, next>>18&1 == 0, next>>8%(1<<19)&^2047, size)
	}
	for i := range uint32(depth) {
		if err := start(i); err != nil {
			return done, err
		}
	}
	for left := depth; left > 0; {
		itt, status, err := c.next(payload)
		switch {
		case err != nil:
			return done, err
		case status != 0 && status != 0x28: // TASK SET FULL is an answer, too
			return done, fmt.Errorf("status %#x", status)
		}
		done++
		if time.Now().After(end) {
			left--
			continue
		}
		if err := start(itt); err != nil {
			return done, err
		}
	}
	return done, c.logout()
}

// Tens of thousands of connections that never log in: a good initiator gets through
// in the midst of them, and the server's memory stays small.
func TestFlood(t *testing.T) {
	s := serve(t, 64<<20)
	before := s.memory("VmRSS")
	const most = 12_000 // of our own descriptors
	open := make([]net.Conn, 0, *flood)
	for i := range *flood {
		d := from(i)
		nc, err := d.Dial("tcp", s.portal)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		if open = append(open, nc); i >= most {
			open[i-most].Close()
		}
		if i%5000 == 0 {
			c, err := login(net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 9, 9, 9)}}, s.portal, "iqn.2026-01.org.example.lab:good", 1)
			if err == nil {
				err = c.ready()
			}
			if err == nil {
				err = c.logout()
			}
			if err != nil {
				t.Errorf("a good login in the midst, at %d: %v", i, err)
			}
		}
	}
	peak := s.memory("VmHWM")
	for _, nc := range open[max(0, len(open)-most):] {
		nc.Close()
	}
	t.Logf("FIGURE server's memory: %s before, peak %s over %d half-open logins", mib(before), mib(peak), *flood)
	if peak > before+64<<20 {
		t.Errorf("memory grew from %s to %s", mib(before), mib(peak))
	}
	c, err := login(from(1), s.portal, "iqn.2026-01.org.example.lab:good", 1)
	if err != nil {
		t.Fatalf("a good login afterwards: %v", err)
	}
	if err := c.ready(); err != nil {
		t.Error(err)
	}
	if err := c.logout(); err != nil {
		t.Error(err)
	}
}

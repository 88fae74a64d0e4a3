package initiator

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cleave-san/cleave/iscsi/pdu"
)

// A write in the middle of which the connection is lost, and that finds the target
// behind another portal group, may still be done by the first.
func TestUncertainWrite(t *testing.T) {
	for _, c := range []struct {
		group string
		want  error
	}{{"1", nil}, {"2", ErrUncertain}} {
		a, b := newPeer(t), newPeer(t)
		b.group = c.group
		o := a.options()
		o.Portals = append(o.Portals, b.addr)
		d := open(t, o)
		a.once(func(pc *peerConn, _ *pdu.Header) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.onLogin(func(c *peerConn, h *pdu.Header, _ []pdu.Key) bool {
				c.loginResponse(h, 0, 3, 1)
				return true
			})
			pc.nc.Close()
		})
		if _, err := d.WriteAt(make([]byte, 512), 0); !errors.Is(err, c.want) {
			t.Errorf("group %s: %v, want %v", c.group, err, c.want)
		}
	}
}

// A LUN that says it is another is looked at before the next answer is trusted.
func TestExchangedInSession(t *testing.T) {
	p := newPeer(t)
	d := open(t, p.options())
	p.once(func(c *peerConn, h *pdu.Header) {
		p.mu.Lock()
		p.serial = "two"
		p.mu.Unlock()
		c.status(h, 2, fixedSense(6, 0x3f, 0x0e))
	})
	if _, err := d.ReadAt(make([]byte, 512), 0); !errors.Is(err, ErrIdentity) {
		t.Errorf("%v", err)
	}
}

// One that exchanges it without a word is found out within NopInterval, before
// the next command.
func TestExchangedSilently(t *testing.T) {
	p := newPeer(t)
	var wrong atomic.Bool
	p.onCommand(func(c *peerConn, h *pdu.Header, _ []byte) bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		if h.Opcode() == pdu.OpSCSICommand && h.CDB()[0] == opWrite10 && p.serial != "one" {
			wrong.Store(true)
		}
		return false
	})
	o := p.options()
	o.NopInterval = 50 * time.Millisecond
	d := open(t, o)
	mustWrite(t, d, 0, make([]byte, 512))
	p.mu.Lock()
	p.serial = "two"
	p.mu.Unlock()
	s := d.cur.Load()
	doubts := s.doubts.Load()
	eventually(t, "doubts", func() bool { return s.doubts.Load() > doubts })
	if _, err := d.WriteAt(make([]byte, 512), 0); !errors.Is(err, ErrIdentity) {
		t.Errorf("%v", err)
	}
	if wrong.Load() {
		t.Error("the wrong LUN was written to")
	}
}

// What the target says about its start decides whether a Sync can be trusted.
func TestCacheAcrossSessions(t *testing.T) {
	for _, c := range []struct {
		name string
		uas  [][]byte
		want error
	}{
		{"only the connection was lost", [][]byte{fixedSense(6, 0x29, 7)}, nil},
		{"started anew", [][]byte{fixedSense(6, 0x29, 0)}, ErrCacheLost},
		{"says nothing", nil, ErrCacheLost},
		{"both", [][]byte{fixedSense(6, 0x29, 7), fixedSense(6, 0x29, 3)}, ErrCacheLost},
	} {
		p := newPeer(t)
		d := open(t, p.options())
		mustWrite(t, d, 0, make([]byte, 512))
		p.mu.Lock()
		p.uas = c.uas
		for nc := range p.conns {
			nc.Close()
		}
		p.mu.Unlock()
		if err := d.Sync(); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// Pings are answered, and ours are sent where the target is silent; one that does
// not answer loses the connection.
func TestPings(t *testing.T) {
	p := newPeer(t)
	var pings, pongs atomic.Int32
	p.onCommand(func(c *peerConn, h *pdu.Header, _ []byte) bool {
		if h.Opcode() != pdu.OpNopOut {
			return false
		}
		if h.ITT() != pdu.NoTag {
			pings.Add(1)
			if c.number == 1 && pings.Load() > 3 {
				return true // silence
			}
			var q pdu.Header
			q.Set(pdu.OpNopIn, pdu.FlagFinal)
			q.SetITT(pdu.NoTag)
			q.SetTTT(42)
			c.send(&q, nil)
			return false
		}
		if h.TTT() == 42 && h.Immediate() {
			pongs.Add(1)
		}
		return true
	})
	o := p.options()
	o.NopInterval = 40 * time.Millisecond
	d := open(t, o)
	first := d.cur.Load()
	eventually(t, "pings and their answers", func() bool { return pings.Load() >= 3 && pongs.Load() >= 3 })
	eventually(t, "the silence to be seen", func() bool { return first.lost() != nil })
	if err := first.lost(); !errors.Is(err, errTimeout) {
		t.Errorf("%v", err)
	}
	mustRead(t, d, 0, make([]byte, 512))
}

// Asynchronous messages that end the session are followed by another.
func TestAsync(t *testing.T) {
	for _, event := range []byte{eventLogout, eventDropConn, eventDropSession, eventNegotiate} {
		p := newPeer(t)
		var logouts atomic.Int32
		d := open(t, p.options())
		var done atomic.Bool
		p.onCommand(func(c *peerConn, h *pdu.Header, _ []byte) bool {
			switch {
			case h.Opcode() == pdu.OpLogout:
				logouts.Add(1)
			case h.CDB()[0] == opRead10 && h.Opcode() == pdu.OpSCSICommand && !done.Swap(true):
				var m pdu.Header
				m.Set(pdu.OpAsync, pdu.FlagFinal)
				m.SetITT(pdu.NoTag)
				m[36] = event
				c.sendStatus(&m, nil)
			}
			return false
		})
		for range 3 {
			mustRead(t, d, 0, make([]byte, 512))
		}
		eventually(t, "another session", func() bool {
			_, err := d.ReadAt(make([]byte, 512), 0)
			p.mu.Lock()
			defer p.mu.Unlock()
			return err == nil && p.logins == 2
		})
		if want := event == eventLogout || event == eventNegotiate; want != (logouts.Load() == 1) {
			t.Errorf("event %d: %d logouts", event, logouts.Load())
		}
	}
}

// No more commands are sent than the window allows, and all end.
func TestCommandWindow(t *testing.T) {
	p := newPeer(t)
	p.window = 2
	var most, now atomic.Int32
	held := make(chan func(), 64)
	p.onCommand(func(c *peerConn, h *pdu.Header, _ []byte) bool {
		if h.Opcode() != pdu.OpSCSICommand || h.CDB()[0] != opRead10 {
			return false
		}
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		q := *h
		held <- func() {
			now.Add(-1)
			c.data(&q, make([]byte, 512))
		}
		if len(held) == 2 {
			for range 2 {
				(<-held)()
			}
		}
		return true
	})
	d := open(t, p.options())
	errs := make(chan error)
	for range 20 {
		go func() {
			_, err := d.ReadAt(make([]byte, 512), 0)
			errs <- err
		}()
	}
	for range 20 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if most.Load() > 2 {
		t.Errorf("%d commands at once", most.Load())
	}
}

// What is sent obeys what the target can take.
func TestTransferLimits(t *testing.T) {
	for _, initialR2T := range []string{"Yes", "No"} {
		for _, immediateData := range []string{"Yes", "No"} {
			t.Run(fmt.Sprintf("InitialR2T=%s ImmediateData=%s", initialR2T, immediateData), func(t *testing.T) {
				transferLimits(t, initialR2T, immediateData)
			})
		}
	}
}

func transferLimits(t *testing.T, initialR2T, immediateData string) {
	const segment, first, burst, all = 1024, 2048, 4096, 20000 / 512 * 512
	p := newPeer(t)
	p.replies = []pdu.Key{{Name: "MaxRecvDataSegmentLength", Value: "1024"}, {Name: "FirstBurstLength", Value: "2048"},
		{Name: "MaxBurstLength", Value: "4096"}, {Name: "InitialR2T", Value: initialR2T}, {Name: "ImmediateData", Value: immediateData}}
	var q pdu.Header
	var got []byte
	var unasked, sn, r2ts uint32
	next := func(c *peerConn) {
		if len(got) == all {
			c.status(&q, 0, nil)
			return
		}
		h := r2t(&q, r2ts, uint32(len(got)), min(burst, uint32(all-len(got))))
		r2ts++
		sn = 0
		c.send(&h, nil)
	}
	p.onCommand(func(c *peerConn, h *pdu.Header, data []byte) bool {
		switch {
		case h.Opcode() == pdu.OpSCSICommand && h.CDB()[0] == opWrite10:
			q = *h
			unasked = uint32(len(data))
			got = append(got[:0], data...)
			if immediateData == "No" && len(data) > 0 || len(data) > segment {
				t.Errorf("%d bytes of immediate data", len(data))
			}
			if h.Final() {
				next(c)
			}
		case h.Opcode() == pdu.OpDataOut:
			if len(data) > segment || int(h.Offset()) != len(got) || h.DataSN() != sn {
				t.Errorf("%d bytes at %d with DataSN %d; have %d, next is %d", len(data), h.Offset(), h.DataSN(), len(got), sn)
			}
			sn++
			got = append(got, data...)
			if h.TTT() == pdu.NoTag {
				unasked += uint32(len(data))
			} else if h.TTT() != 77 {
				t.Errorf("tag %d", h.TTT())
			}
			if h.Final() {
				next(c)
			}
		default:
			return false
		}
		return true
	})
	d := open(t, p.options())
	want := pattern(all, 3)
	mustWrite(t, d, 0, want)
	if string(got) != string(want) {
		t.Error("other bytes arrived")
	}
	if unasked > first || initialR2T == "No" && unasked != first {
		t.Errorf("%d bytes came unasked", unasked)
	}
}

// A list of LUNs that lies about its length is cut.
func TestLUNsBounded(t *testing.T) {
	p := newPeer(t)
	p.onCommand(func(c *peerConn, h *pdu.Header, _ []byte) bool {
		if h.Opcode() != pdu.OpSCSICommand || h.CDB()[0] != opReportLUNs {
			return false
		}
		b := make([]byte, 8+8*3)
		binary.BigEndian.PutUint32(b, 0xfffffff8)
		b[9], b[16], b[17], b[24] = 5, 0x41, 0x02, 0xc0
		c.data(h, b)
		return true
	})
	luns, err := LUNs(context.Background(), p.options())
	if err != nil || fmt.Sprint(luns) != "[5 258]" {
		t.Errorf("%v %v", luns, err)
	}
}

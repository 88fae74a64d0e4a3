package initiator

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cleave-san/cleave/iscsi/pdu"
	"github.com/cleave-san/cleave/lun"
)

// dataIn is a Data-In PDU for a command.
func dataIn(q *pdu.Header, sn, off uint32, flags uint8) (h pdu.Header) {
	h.Set(pdu.OpDataIn, flags)
	h.SetITT(q.ITT())
	h.SetTTT(pdu.NoTag)
	h.SetDataSN(sn)
	h.SetOffset(off)
	return h
}

func r2t(q *pdu.Header, sn, off, n uint32) (h pdu.Header) {
	h.Set(pdu.OpR2T, pdu.FlagFinal)
	h.SetITT(q.ITT())
	h.SetTTT(77)
	h.SetDataSN(sn)
	h.SetOffset(off)
	h.SetDesired(n)
	return h
}

const (
	good = pdu.FlagFinal | pdu.FlagStatus
	some = 0
)

// Each of them answers a read or a write of 64 KiB in a way that no target may. It
// loses the connection; the initiator neither hangs, nor takes it for an answer,
// nor touches memory that isn't the request's.
func TestHostile(t *testing.T) {
	for _, c := range []struct {
		name  string
		write bool
		say   func(c *peerConn, q *pdu.Header)
	}{
		{"data for another tag", false, func(c *peerConn, q *pdu.Header) {
			h := dataIn(q, 0, 0, good)
			h.SetITT(q.ITT() + 1<<indexBits)
			c.send(&h, make([]byte, 65536))
		}},
		{"data for a place beyond all", false, func(c *peerConn, q *pdu.Header) {
			h := dataIn(q, 0, 0, good)
			h.SetITT(q.ITT() | indexMask)
			c.send(&h, make([]byte, 65536))
		}},
		{"data beyond the end", false, func(c *peerConn, q *pdu.Header) {
			h := dataIn(q, 0, 0, good)
			c.send(&h, make([]byte, 65540))
		}},
		{"data from an offset", false, func(c *peerConn, q *pdu.Header) {
			h := dataIn(q, 0, 4, good)
			c.send(&h, make([]byte, 512))
		}},
		{"offset that overflows", false, func(c *peerConn, q *pdu.Header) {
			h := dataIn(q, 0, 0xfffffff0, good)
			c.send(&h, make([]byte, 512))
		}},
		{"data twice", false, func(c *peerConn, q *pdu.Header) {
			h := dataIn(q, 0, 0, some)
			c.send(&h, make([]byte, 512))
			h = dataIn(q, 1, 0, good)
			c.send(&h, make([]byte, 512))
		}},
		{"gap in DataSN", false, func(c *peerConn, q *pdu.Header) {
			h := dataIn(q, 0, 0, some)
			c.send(&h, make([]byte, 512))
			h = dataIn(q, 2, 512, good)
			c.send(&h, make([]byte, 65024))
		}},
		{"status in the middle", false, func(c *peerConn, q *pdu.Header) {
			h := dataIn(q, 0, 0, good)
			c.send(&h, make([]byte, 512))
		}},
		{"status not final", false, func(c *peerConn, q *pdu.Header) {
			h := dataIn(q, 0, 0, pdu.FlagStatus)
			c.send(&h, make([]byte, 65536))
		}},
		{"status without data", false, func(c *peerConn, q *pdu.Header) { c.status(q, 0, nil) }},
		{"residual that doesn't fit", false, func(c *peerConn, q *pdu.Header) {
			h := responseTo(q, 0)
			h.SetFlags(pdu.FlagFinal | pdu.FlagUnderflow)
			h.SetResidual(512)
			c.sendStatus(&h, nil)
		}},
		{"residual beyond all", true, func(c *peerConn, q *pdu.Header) {
			h := responseTo(q, 0)
			h.SetFlags(pdu.FlagFinal | pdu.FlagUnderflow)
			h.SetResidual(0xffffffff)
			c.sendStatus(&h, nil)
		}},
		{"status for no command", false, func(c *peerConn, q *pdu.Header) {
			h := responseTo(q, 0)
			h.SetITT(0)
			c.sendStatus(&h, nil)
		}},
		{"segment longer than agreed", false, func(c *peerConn, q *pdu.Header) {
			h := dataIn(q, 0, 0, good)
			c.raw(&h, make([]byte, 65536), ourRecvMax+1, 0, 0)
		}},
		{"header digest", false, func(c *peerConn, q *pdu.Header) {
			h := dataIn(q, 0, 0, good)
			c.raw(&h, make([]byte, 65536), 65536, 1, 0)
		}},
		{"data digest", false, func(c *peerConn, q *pdu.Header) {
			h := dataIn(q, 0, 0, good)
			c.raw(&h, make([]byte, 65536), 65536, 0, 1)
		}},
		{"R2T for a read", false, func(c *peerConn, q *pdu.Header) {
			h := r2t(q, 0, 0, 512)
			c.send(&h, nil)
		}},
		{"R2T beyond the end", true, func(c *peerConn, q *pdu.Header) {
			h := r2t(q, 0, 32768, 32772)
			c.send(&h, nil)
		}},
		{"R2T that overflows", true, func(c *peerConn, q *pdu.Header) {
			h := r2t(q, 0, 0xffffff00, 0x200)
			c.send(&h, nil)
		}},
		{"R2T over a burst", true, func(c *peerConn, q *pdu.Header) {
			h := r2t(q, 0, 32768, 0xffffffff)
			c.send(&h, nil)
		}},
		{"R2T for nothing", true, func(c *peerConn, q *pdu.Header) {
			h := r2t(q, 0, 32768, 0)
			c.send(&h, nil)
		}},
		{"R2T twice", true, func(c *peerConn, q *pdu.Header) {
			h := r2t(q, 0, 32768, 512)
			c.send(&h, nil)
			h = r2t(q, 1, 32768, 512)
			c.send(&h, nil)
		}},
		{"gap in R2TSN", true, func(c *peerConn, q *pdu.Header) {
			h := r2t(q, 1, 32768, 512)
			c.send(&h, nil)
		}},
		{"data for a write", true, func(c *peerConn, q *pdu.Header) {
			h := dataIn(q, 0, 0, good)
			c.send(&h, make([]byte, 512))
		}},
		{"a request", false, func(c *peerConn, q *pdu.Header) {
			var h pdu.Header
			h.Set(pdu.OpSCSICommand, pdu.FlagFinal)
			c.send(&h, nil)
		}},
		{"AHS", false, func(c *peerConn, q *pdu.Header) {
			h := responseTo(q, 0)
			h[4] = 1
			c.send(&h, make([]byte, 4))
		}},
		{"a reject", false, func(c *peerConn, q *pdu.Header) {
			var h pdu.Header
			h.Set(pdu.OpReject, pdu.FlagFinal)
			h[2] = 4
			c.sendStatus(&h, q[:])
		}},
		{"an answer to no ping", false, func(c *peerConn, q *pdu.Header) {
			var h pdu.Header
			h.Set(pdu.OpNopIn, pdu.FlagFinal)
			h.SetITT(5)
			c.send(&h, nil)
		}},
		{"a logout unasked", false, func(c *peerConn, q *pdu.Header) {
			var h pdu.Header
			h.Set(pdu.OpLogoutResp, pdu.FlagFinal)
			h.SetITT(5)
			c.send(&h, nil)
		}},
		{"login again", false, func(c *peerConn, q *pdu.Header) { c.loginResponse(q, 0, 0, 0) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPeer(t)
			p.replies = []pdu.Key{{Name: "FirstBurstLength", Value: "32768"}, {Name: "MaxBurstLength", Value: "65536"},
				{Name: "InitialR2T", Value: "Yes"}, {Name: "MaxRecvDataSegmentLength", Value: "32768"}}
			if strings.Contains(c.name, "digest") {
				p.replies = append(p.replies, pdu.Key{Name: "HeaderDigest", Value: "CRC32C"}, pdu.Key{Name: "DataDigest", Value: "CRC32C"})
			}
			var tries atomic.Int32
			p.onCommand(func(pc *peerConn, h *pdu.Header, _ []byte) bool {
				op := h.CDB()[0]
				if h.Opcode() != pdu.OpSCSICommand || op != opRead10 && op != opWrite10 {
					return false
				}
				tries.Add(1)
				c.say(pc, h)
				return true
			})
			d := open(t, p.options())
			var err error
			whole := make([]byte, 3*65536)
			for i := range whole {
				whole[i] = 0xee
			}
			if c.write {
				_, err = d.WriteAt(make([]byte, 65536), 0)
			} else {
				_, err = d.ReadAt(whole[65536:2*65536], 0)
			}
			if !errors.Is(err, ErrLost) {
				t.Errorf("%v", err)
			}
			for i, b := range whole {
				if b != 0xee && (i < 65536 || i >= 2*65536) {
					t.Fatalf("byte %d was written to", i)
				}
			}
			if n := tries.Load(); n != lossesMax+1 {
				t.Errorf("%d tries", n)
			}
		})
	}
}

// Login that leads nowhere ends, with its reason.
func TestHostileLogin(t *testing.T) {
	for _, c := range []struct {
		name string
		want string
		say  func(c *peerConn, h *pdu.Header, keys []pdu.Key) bool
	}{
		{"endless", "no end", func(c *peerConn, h *pdu.Header, _ []pdu.Key) bool {
			c.loginResponse(h, h.Flags()&^pdu.FlagFinal, 0, 0)
			return true
		}},
		{"endless text", "bytes of text", func(c *peerConn, h *pdu.Header, _ []pdu.Key) bool {
			c.loginResponse(h, h.Flags()&^pdu.FlagFinal|pdu.FlagContinue, 0, 0, pdu.Key{Name: "X-a", Value: strings.Repeat("x", 8000)})
			return true
		}},
		{"endless pieces", "no end", func(c *peerConn, h *pdu.Header, _ []pdu.Key) bool {
			c.loginResponse(h, h.Flags()&^pdu.FlagFinal|pdu.FlagContinue, 0, 0)
			return true
		}},
		{"too long a segment", "longer than negotiated", func(c *peerConn, h *pdu.Header, _ []pdu.Key) bool {
			c.loginResponse(h, h.Flags(), 0, 0, pdu.Key{Name: "X-a", Value: strings.Repeat("x", 8192)})
			return true
		}},
		{"not a login", "answered by", func(c *peerConn, h *pdu.Header, _ []pdu.Key) bool {
			r := responseTo(h, 0)
			c.send(&r, nil)
			return true
		}},
		{"another stage", "stage", func(c *peerConn, h *pdu.Header, _ []pdu.Key) bool {
			c.loginResponse(h, pdu.FlagFinal|stageOperational<<2|stageFull, 0, 0)
			return true
		}},
		{"straight to the end", "unasked", func(c *peerConn, h *pdu.Header, _ []pdu.Key) bool {
			c.loginResponse(h, pdu.FlagFinal|stageSecurity<<2|stageFull, 0, 0)
			return true
		}},
		{"keys without sense", "malformed", func(c *peerConn, h *pdu.Header, _ []pdu.Key) bool {
			c.loginResponse(h, h.Flags(), 0, 0, pdu.Key{Name: "", Value: "x"})
			return true
		}},
		{"a key twice", "twice", func(c *peerConn, h *pdu.Header, _ []pdu.Key) bool {
			c.loginResponse(h, h.Flags(), 0, 0, pdu.Key{Name: "X-a", Value: "1"}, pdu.Key{Name: "X-a", Value: "2"})
			return true
		}},
		{"redirected in a circle", "redirected", func(c *peerConn, h *pdu.Header, _ []pdu.Key) bool {
			c.loginResponse(h, 0, 1, 1, pdu.Key{Name: "TargetAddress", Value: c.p.addr + ",1"})
			return true
		}},
		{"redirected to nowhere", "redirected", func(c *peerConn, h *pdu.Header, _ []pdu.Key) bool {
			c.loginResponse(h, 0, 1, 1)
			return true
		}},
		{"out of resources", "out of resources", func(c *peerConn, h *pdu.Header, _ []pdu.Key) bool {
			c.loginResponse(h, 0, 3, 2)
			return true
		}},
		{"CHAP that was not offered", "AuthMethod", func(c *peerConn, h *pdu.Header, _ []pdu.Key) bool {
			c.loginResponse(h, 0, 0, 0, pdu.Key{Name: "AuthMethod", Value: "CHAP"})
			return true
		}},
		{"silence", "deadline", func(*peerConn, *pdu.Header, []pdu.Key) bool { return true }},
		{"burst beyond the offer", "MaxBurstLength", operational(pdu.Key{Name: "MaxBurstLength", Value: "16777215"})},
		{"no segment at all", "MaxRecvDataSegmentLength", operational(pdu.Key{Name: "MaxRecvDataSegmentLength", Value: "0"})},
		{"data out of order", "DataPDUInOrder", operational(pdu.Key{Name: "DataPDUInOrder", Value: "No"})},
		{"digest unheard of", "HeaderDigest", operational(pdu.Key{Name: "HeaderDigest", Value: "MD5"})},
		{"recovery unheard of", "ErrorRecoveryLevel", operational(pdu.Key{Name: "ErrorRecoveryLevel", Value: "2"})},
		{"no number", "FirstBurstLength", operational(pdu.Key{Name: "FirstBurstLength", Value: "many"})},
		{"no truth", "ImmediateData", operational(pdu.Key{Name: "ImmediateData", Value: "maybe"})},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPeer(t)
			p.onLogin(c.say)
			o := p.options()
			if c.want == "deadline" {
				o.Timeout = 100 * time.Millisecond
			}
			_, err := Open(context.Background(), o)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q in it", err, c.want)
			}
		})
	}
}

// operational answers the operational stage with one key.
func operational(k pdu.Key) func(*peerConn, *pdu.Header, []pdu.Key) bool {
	return func(c *peerConn, h *pdu.Header, _ []pdu.Key) bool {
		if h.Flags()>>2&3 != stageOperational {
			return false
		}
		c.loginResponse(h, h.Flags(), 0, 0, k)
		return true
	}
}

func TestRedirect(t *testing.T) {
	there := newPeer(t)
	here := newPeer(t)
	here.onLogin(func(c *peerConn, h *pdu.Header, _ []pdu.Key) bool {
		c.loginResponse(h, 0, 1, 1, pdu.Key{Name: "TargetAddress", Value: there.addr})
		return true
	})
	d := open(t, here.options())
	if got := d.cur.Load().portal; got != there.addr {
		t.Errorf("at %s", got)
	}
	mustRead(t, d, 0, make([]byte, 4096))
}

// A target without CHAP is not spoken to where it should prove itself.
func TestMutualIsNotTalkedDown(t *testing.T) {
	p := newPeer(t)
	o := p.options()
	o.CHAP = mutual()
	if _, err := Open(context.Background(), o); !errors.Is(err, ErrAuth) {
		t.Errorf("%v", err)
	}
}

// once has a hook take the first read or write and let the others through.
func (p *peer) once(fn func(c *peerConn, h *pdu.Header)) {
	var done atomic.Bool
	p.onCommand(func(c *peerConn, h *pdu.Header, _ []byte) bool {
		if op := h.CDB()[0]; h.Opcode() != pdu.OpSCSICommand || op != opRead10 && op != opWrite10 || done.Swap(true) {
			return false
		}
		fn(c, h)
		return true
	})
}

// What goes away by itself is repeated; what doesn't is told in one line.
func TestSense(t *testing.T) {
	for _, c := range []struct {
		name   string
		status byte
		sense  []byte
		want   error
	}{
		{"unit attention", 2, fixedSense(6, 0x2a, 1), nil},
		{"aborted", 2, fixedSense(0xb, 0, 0), nil},
		{"becoming ready", 2, fixedSense(2, 4, 1), nil},
		{"busy", 8, nil, nil},
		{"task set full", 0x28, nil, nil},
		{"task aborted", 0x40, nil, nil},
		{"reservation", 0x18, nil, ErrReserved},
		{"no space", 2, fixedSense(7, 0x27, 7), lun.ErrNoSpace},
		{"write protected", 2, fixedSense(7, 0x27, 0), lun.ErrReadOnly},
		{"out of range", 2, fixedSense(5, 0x21, 0), lun.ErrOutOfRange},
		{"descriptor format", 2, []byte{0x72, 5, 0x25, 0, 0, 0, 0, 0}, ErrNoLUN},
		{"no sense", 2, nil, errAny},
		{"medium error", 2, []byte{0xf0, 0, 3, 0, 0, 0, 9, 10, 0, 0, 0, 0, 0x11, 0}, errAny},
	} {
		p := newPeer(t)
		d := open(t, p.options())
		p.once(func(pc *peerConn, h *pdu.Header) { pc.status(h, c.status, c.sense) })
		_, err := d.WriteAt(make([]byte, 512), 0)
		if c.want == nil && err != nil || c.want != nil && err == nil || c.want != errAny && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: more than a line: %q", c.name, err)
		}
		var sense *SenseError
		if c.name == "medium error" && (!errors.As(err, &sense) || sense.Key != MediumError || !sense.HasInfo || sense.Info != 9) {
			t.Errorf("%s: %+v", c.name, sense)
		}
	}
}

var errAny = errors.New("any")

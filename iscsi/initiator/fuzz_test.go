package initiator

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cleave-san/cleave/iscsi/pdu"
)

// script is a connection whose other end says what was written down before, once
// it is told to, and hears nothing.
type script struct {
	net.Conn // nil: nothing else is called
	say      *bytes.Reader
	begin    chan struct{}
}

func (s *script) Read(p []byte) (int, error) {
	<-s.begin
	return s.say.Read(p)
}
func (s *script) Write(p []byte) (int, error) { return len(p), nil }
func (s *script) Close() error                { return nil }

func said(b []byte, begun bool) *script {
	s := &script{say: bytes.NewReader(b), begin: make(chan struct{})}
	if begun {
		close(s.begin)
	}
	return s
}

// recorded is what a peer says.
func recorded(hd, dd bool, say func(c *peerConn)) []byte {
	var b buffer
	c := (&peer{window: 64}).conn(&b)
	c.rd.HeaderDigest, c.rd.DataDigest = hd, dd
	say(c)
	return b.Bytes()
}

type buffer struct{ bytes.Buffer }

func (*buffer) Close() error { return nil }

// FuzzReceive has a target say anything to a session with a read, a write and an
// INQUIRY under way: every command ends, and nothing but its buffer is touched.
func FuzzReceive(f *testing.F) {
	request := func(index, n uint32) *pdu.Header {
		var q pdu.Header
		q.SetITT(1<<indexBits | index)
		q.SetEDTL(n)
		return &q
	}
	read, write, inquiry := request(2, 8192), request(1, 65536), request(0, 96)
	for _, digests := range []bool{false, true} {
		f.Add(recorded(digests, digests, func(c *peerConn) {
			c.data(read, make([]byte, 8192))
			h := r2t(write, 0, 8192, 32768)
			c.send(&h, nil)
			h = r2t(write, 1, 40960, 24576)
			c.send(&h, nil)
			c.status(write, 2, fixedSense(6, 0x3f, 0x0e))
			c.data(inquiry, make([]byte, 36))
		}), digests, digests)
		f.Add(recorded(digests, digests, func(c *peerConn) {
			h := dataIn(read, 0, 0, some)
			c.send(&h, make([]byte, 4096))
			h = dataIn(read, 1, 4096, good)
			c.send(&h, make([]byte, 4096))
			h.Set(pdu.OpNopIn, pdu.FlagFinal)
			h.SetITT(pdu.NoTag)
			c.send(&h, nil)
			h.Set(pdu.OpAsync, pdu.FlagFinal)
			c.sendStatus(&h, []byte{0, 2, 0x72, 5})
			h.Set(pdu.OpLogoutResp, pdu.FlagFinal)
			h.SetITT(logoutTag)
			c.sendStatus(&h, nil)
		}), digests, digests)
	}
	o, err := Options{Portals: []string{"h"}, Initiator: alice, Depth: 3, Timeout: time.Minute, NopInterval: time.Minute}.withDefaults()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte, hd, dd bool) {
		conn := said(in, false)
		w := &wire{nc: &source{Conn: conn}, rd: pdu.NewReader(conn, 4096, ourRecvMax), par: defaultParams(), cmdSN: 1, maxCmdSN: 64}
		w.rd.HeaderDigest, w.rd.DataDigest = hd, dd
		w.par.headerDigest, w.par.dataDigest = hd, dd
		s := newSession(w, &o, new(atomic.Uint64))
		guarded := bytes.Repeat([]byte{0xee}, 3*8192)
		commands := []*command{
			{cdb: transferCDB(false, 0, 16), in: guarded[8192 : 2*8192 : 2*8192], exact: true},
			{cdb: transferCDB(true, 0, 128), out: make([]byte, 65536), exact: true},
			{cdb: inquiryCDB(false, 0, 96), in: make([]byte, 96)},
		}
		var tasks []*task
		for _, c := range commands {
			k, err := s.start(c)
			if err != nil {
				t.Fatal(err)
			}
			tasks = append(tasks, k)
		}
		close(conn.begin)
		for _, k := range tasks {
			s.await(k)
			if n, err := k.result(); err == nil && k.c.exact && n != len(k.c.in) {
				t.Errorf("%d bytes of %d are success", n, len(k.c.in))
			}
		}
		<-s.over
		for i, b := range guarded {
			if b != 0xee && i/8192 != 1 {
				t.Fatalf("byte %d was written to", i)
			}
		}
	})
}

// FuzzLogin has a target say anything from the first byte on.
func FuzzLogin(f *testing.F) {
	steps := recorded(false, false, func(c *peerConn) {
		var q pdu.Header
		q.SetITT(1)
		c.loginResponse(&q, pdu.FlagFinal|stageOperational, 0, 0, pdu.Key{Name: "AuthMethod", Value: "None"})
		c.loginResponse(&q, pdu.FlagFinal|stageOperational<<2|stageFull, 0, 0, pdu.Key{Name: "MaxBurstLength", Value: "65536"})
	})
	f.Add(steps, false)
	f.Add(recorded(false, false, func(c *peerConn) {
		var q pdu.Header
		q.SetITT(1)
		c.loginResponse(&q, 0, 0, 0, pdu.Key{Name: "AuthMethod", Value: "CHAP"})
		c.loginResponse(&q, 0, 0, 0, pdu.Key{Name: "CHAP_A", Value: "5"}, pdu.Key{Name: "CHAP_I", Value: "1"}, pdu.Key{Name: "CHAP_C", Value: "0x0102"})
		c.loginResponse(&q, 0, 0, 0, pdu.Key{Name: "CHAP_N", Value: "disk"}, pdu.Key{Name: "CHAP_R", Value: "0x0102"})
		c.loginResponse(&q, 0, 1, 1, pdu.Key{Name: "TargetAddress", Value: "[::1]:1,1"})
	}), true)
	f.Fuzz(func(t *testing.T, in []byte, chap bool) {
		o := Options{Portals: []string{"h"}, Target: testTarget, Initiator: alice}
		if chap {
			o.CHAP = mutual()
		}
		o.Dial = func(context.Context, string, string) (net.Conn, error) { return said(in, true), nil }
		o, err := o.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		w, err := connect(context.Background(), &o, "h:1", testTarget, newISID())
		if err == nil && (chap || w.par.firstBurst > w.par.maxBurst || w.par.sendMax < 512 || w.par.maxBurst > ourMaxBurst) {
			t.Errorf("logged in with %+v", w.par)
		}
	})
}

// FuzzFacts has a LUN say anything about itself.
func FuzzFacts(f *testing.F) {
	f.Add([]byte("\x24" + string(make([]byte, 36)) + "\x10\x00\x83\x00\x0c\x01\x03\x00\x08\x60\x00\x00\x00\x00\x00\x00\x01"))
	page := make([]byte, 64)
	page[0], page[2], page[4] = 62, 0xb0, 58
	f.Add(page)
	f.Fuzz(func(t *testing.T, in []byte) {
		ask := asker(func(c *command) (int, error) {
			if len(in) == 0 {
				return 0, io.EOF
			}
			n := min(int(in[0]), len(in)-1, len(c.in))
			copy(c.in, in[1:1+n])
			in = in[1+n:]
			if n > 0 && in != nil && c.in[0] == 0xff {
				return 0, &SenseError{Key: IllegalRequest, ASC: 0x20}
			}
			return n, nil
		})
		fa, err := ask.identify()
		if err != nil {
			return
		}
		_ = ask.abilities(&fa)
		if fa.size <= 0 || fa.block < 512 || fa.size%int64(fa.block) != 0 || fa.physical < fa.block {
			t.Errorf("%+v", fa)
		}
	})
}

// FuzzReplies has a LUN lie about its provisioning, and targets about their list.
func FuzzReplies(f *testing.F) {
	b := make([]byte, 40)
	binary.BigEndian.PutUint32(b, 36)
	binary.BigEndian.PutUint32(b[16:], 8)
	b[20] = 1
	f.Add(b)
	f.Fuzz(func(t *testing.T, in []byte) {
		_, _ = parseTargets(in, "h:1")
		if e, ok := parseSense(in); ok {
			_ = e.Error()
		}
		d := &Disk{facts: facts{block: 512, size: 1 << 20, thin: true, zeroes: true}}
		at := int64(4096)
		for _, e := range d.extents(in, at) {
			if e.Off != at || e.Len <= 0 || e.Off+e.Len > d.facts.size || e.Len%512 != 0 {
				t.Fatalf("%+v at %d", e, at)
			}
			at += e.Len
		}
	})
}

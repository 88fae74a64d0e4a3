package target

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/chap"
	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/iscsi/pdu"
)

// pipes is a listener in memory, which synctest can wait for.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes"} }

func (p *pipes) dial(t testing.TB) *raw {
	a, b := net.Pipe()
	p.conns <- b
	t.Cleanup(func() { a.Close() })
	return &raw{t: t, nc: a, rd: pdu.NewReader(a, 4096, 1<<24), cmdSN: 1, itt: 1}
}

// A wrong secret, an unknown initiator and an unknown target can't be told apart:
// same answer, same step, same time. The time is that of the test's clock, so
// "same" is exact.
func TestRefusalsLookTheSame(t *testing.T) {
	secret := []byte("initiator-secret")
	for _, guarded := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			var logged bytes.Buffer
			s := New(Options{FailureDelay: 700 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(&logged, nil))})
			l := &lab{t: t, s: s}
			l.must(s.AddTarget(testTarget, ""))
			l.must(s.AddTarget("iqn.2026-01.test:hidden", ""))
			l.must(s.SetMask(testTarget, alice, mask.Grant{LUN: 0}))
			if guarded {
				l.must(s.SetCredentials(alice, &mask.Credentials{User: "alice", Secret: secret}))
			}
			p := newPipes()
			served := make(chan error)
			go func() { served <- s.Serve(p) }()
			cases := map[string]struct {
				initiator, target iscsi.Name
				user              string
				secret            []byte
			}{
				"unknown initiator": {bob, testTarget, "alice", secret},
				"unknown target":    {alice, "iqn.2026-01.test:none", "alice", secret},
				"hidden target":     {alice, "iqn.2026-01.test:hidden", "alice", secret},
			}
			if guarded {
				w := cases["hidden target"]
				w.target, w.secret = testTarget, []byte("initiator-secreT")
				cases["wrong secret"] = w
				w.user, w.secret = "bob", secret
				cases["wrong user"] = w
			}
			var want string
			for name, w := range cases {
				r := p.dial(t)
				var heard []string
				begun := time.Now()
				hear := func(st uint16, h pdu.Header) {
					heard = append(heard, fmt.Sprintf("%v: status %04x flags %02x", time.Since(begun), st, h.Flags()))
				}
				if guarded {
					st, out, h := r.loginPDU(0, 1, false, pdu.Key{Name: "InitiatorName", Value: string(w.initiator)},
						pdu.Key{Name: "TargetName", Value: string(w.target)}, pdu.Key{Name: "AuthMethod", Value: "CHAP,None"})
					hear(st, h)
					if out["AuthMethod"] != "CHAP" {
						t.Fatalf("%s: %v", name, out)
					}
					st, out, h = r.loginPDU(0, 1, false, pdu.Key{Name: "CHAP_A", Value: "7"})
					hear(st, h)
					c, err := chap.ReadChallenge(chap.SHA256, out["CHAP_I"], out["CHAP_C"])
					l.must(err)
					st, _, h = r.loginPDU(0, 1, true, pdu.Key{Name: "CHAP_N", Value: w.user},
						pdu.Key{Name: "CHAP_R", Value: chap.Encode(c.Answer(w.secret))})
					hear(st, h)
				} else {
					st, _, h := r.loginPDU(1, 3, true, pdu.Key{Name: "InitiatorName", Value: string(w.initiator)},
						pdu.Key{Name: "TargetName", Value: string(w.target)})
					hear(st, h)
				}
				r.gone()
				got := strings.Join(heard, "\n")
				if want == "" {
					want = got
				}
				if got != want || !strings.Contains(got, "700ms: status 0201") {
					t.Errorf("guarded %t, %s:\n%s\nwant\n%s", guarded, name, got, want)
				}
			}
			synctest.Wait()
			if n := strings.Count(logged.String(), "refused"); strings.Contains(logged.String(), string(secret[:10])) || n == 0 {
				t.Errorf("%d lines:\n%s", n, logged.String())
			}
			if n := strings.Count(logged.String(), "\n"); n != 1 { // the others within the same 10 s are counted
				t.Errorf("%d lines for one address:\n%s", n, logged.String())
			}
			l.must(s.Close())
			l.must(<-served)
		})
	}
}

// The log's limiter keeps a bounded number of addresses, and counts what it leaves
// out.
func TestLimiter(t *testing.T) {
	var l limiter
	now := time.Now()
	for i := range 10_000 {
		l.allow(network(netipAddr(i)), now)
	}
	if len(l.seen) > limiterMax {
		t.Errorf("%d addresses", len(l.seen))
	}
	first := network(netipAddr(0))
	for range 5 {
		if ok, _ := l.allow(first, now.Add(time.Second)); ok {
			t.Error("a second line")
		}
	}
	if ok, missed := l.allow(first, now.Add(limiterEvery)); !ok || missed != 5 {
		t.Errorf("%t, %d left out", ok, missed)
	}
}

// Credentials never show their secrets, however they are written.
func TestSecretsStayHidden(t *testing.T) {
	c := mask.Credentials{User: "alice", Secret: []byte("the-secret-12"), MutualUser: "disk", MutualSecret: []byte("the-secret-34")}
	var logged bytes.Buffer
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("x", "c", c, "p", &c)
	slog.New(slog.NewTextHandler(&logged, nil)).Info("x", "c", c, "p", &c)
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{logged.String(), string(b), fmt.Sprintf("%v %+v %#v %s", c, c, c, &c)} { //nolint:staticcheck // how it prints is the question
		for _, bad := range []string{"the-secret", "dGhlLXNlY3JldC", "116 104 101", "0x74"} {
			if strings.Contains(s, bad) {
				t.Errorf("shows a secret: %s", s)
			}
		}
	}
}

// A session with a TSIH: an unknown one, a second connection, and the same
// connection again.
func TestLoginWithTSIH(t *testing.T) {
	l := newLab(t, Options{})
	l.add(newDisk(1 << 20))
	old := l.dial()
	st, _, h := old.loginPDU(1, 3, true, names(alice)...)
	if st != 0 {
		t.Fatalf("status %04x", st)
	}
	tsih := h.TSIH()
	login := func(who iscsi.Name, tsih, cid uint16) (uint16, pdu.Header, *raw) {
		r := l.dial()
		var q pdu.Header
		q.Set(pdu.OpLogin|0x40, 0x87)
		q.SetISID([6]byte{0x80, 1, 2, 3, 4, 0})
		q.SetTSIH(tsih)
		q.SetITT(99)
		binary.BigEndian.PutUint16(q[20:], cid)
		binary.BigEndian.PutUint32(q[24:], 1)
		r.must(r.send(&q, pdu.AppendText(nil, names(who)...)))
		h, _, err := r.recv()
		r.must(err)
		return binary.BigEndian.Uint16(h[36:]), h, r
	}
	for _, c := range []struct {
		who       iscsi.Name
		tsih, cid uint16
		want      loginStatus
	}{
		{alice, tsih + 1, 0, statusNoSession},
		{alice, tsih, 1, statusTooMany},
		{bob, tsih, 0, statusNoSession}, // of another initiator: as if it were none
	} {
		if st, _, r := login(c.who, c.tsih, c.cid); st != uint16(c.want) {
			t.Errorf("%+v: status %04x", c, st)
		} else {
			r.gone()
		}
	}
	old.ready(0)
	st, h, r := login(alice, tsih, 0)
	if st != 0 || h.TSIH() != tsih {
		t.Errorf("connection reinstatement: status %04x TSIH %d, want %d", st, h.TSIH(), tsih)
	}
	old.gone()
	r.ready(0)
	if n := len(l.s.Sessions()); n != 1 {
		t.Errorf("%d sessions", n)
	}
}

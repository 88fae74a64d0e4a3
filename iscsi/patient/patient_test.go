package patient

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// pair is a Conn that reads what is written to the other end.
func pair(t *testing.T) (*Conn, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	to, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	from, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { to.Close(); from.Close() })
	return New(from, new(atomic.Bool)), to
}

// However long the waits are, before, during and after a look: every byte comes,
// in order, and then the end.
func TestPatienceMissesNothing(t *testing.T) {
	s, to := pair(t)
	const total = 3000
	go func() {
		defer to.Close()
		for i := range total {
			for end := time.Now().Add(time.Duration(rand.IntN(120)) * time.Microsecond); time.Now().Before(end); {
			}
			if _, err := to.Write([]byte{byte(i)}); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	var b [16]byte
	for got := 0; ; {
		s.raw.short = enough // it would look
		n, err := s.Read(b[:])
		for i := range n {
			if b[i] != byte(got+i) {
				t.Fatalf("byte %d is %d, want %d", got+i, b[i], byte(got+i))
			}
		}
		got += n
		if errors.Is(err, io.EOF) && got == total {
			return
		}
		if err != nil {
			t.Fatalf("after %d bytes of %d: %v", got, total, err)
		}
	}
}

// A reader that waits for long doesn't look the next time, and one that finds
// another at it doesn't look at all.
func TestPatienceEnds(t *testing.T) {
	s, to := pair(t)
	read := func() {
		t.Helper()
		sent := make(chan error, 1)
		time.AfterFunc(5*time.Millisecond, func() {
			_, err := to.Write([]byte{1})
			sent <- err
		})
		var b [1]byte
		if n, err := s.Read(b[:]); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	}
	s.raw.short = enough
	s.raw.looking.Store(true)
	read()
	if s.raw.vain != 0 || s.raw.rest != 0 {
		t.Error("it looked while another did")
	}
	s.raw.looking.Store(false)
	for range 200 { // a reader that comes late finds the byte, and has nothing to wait for
		s.raw.short, s.raw.resume = enough, time.Time{}
		read()
		if s.raw.looking.Load() {
			t.Fatal("nobody can look any more")
		}
		if (s.raw.vain != 0 || s.raw.rest != 0) && s.raw.short == 0 {
			return
		}
	}
	t.Errorf("it never looked in vain and slept for long: %d in vain, %d short waits", s.raw.vain, s.raw.short)
}

// An end that comes while the reader waits is told, as is a deadline.
func TestPatienceErrors(t *testing.T) {
	s, to := pair(t)
	s.raw.short = enough
	if err := s.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	var timeout net.Error
	if _, err := s.Read(b[:]); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("after the deadline: %v", err)
	}
	if err := s.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(time.Millisecond, func() { to.(*net.TCPConn).SetLinger(0); to.Close() })
	if _, err := s.Read(b[:]); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("after a reset: %v", err)
	}
	s.Close()
	if _, err := s.Read(b[:]); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

package nbd

import (
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"
)

// stranger is a client that says what it likes.
type stranger struct {
	t *testing.T
	net.Conn
}

func meet(t *testing.T, port string) *stranger {
	t.Helper()
	c, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	s := &stranger{t, c}
	s.take(18)
	return s
}

func (s *stranger) take(n int) []byte {
	s.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(s, b); err != nil {
		s.t.Fatalf("waiting for %d bytes: %v", n, err)
	}
	return b
}

func (s *stranger) say(b ...byte) {
	s.t.Helper()
	if _, err := s.Write(b); err != nil {
		s.t.Fatal(err)
	}
}

func optionBytes(o optionType, data ...byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, magicOption)
	b = binary.BigEndian.AppendUint32(b, uint32(o))
	return append(binary.BigEndian.AppendUint32(b, uint32(len(data))), data...)
}

// option is the server's first answer to an option.
func (s *stranger) option(o optionType, data ...byte) replyType {
	s.t.Helper()
	s.say(optionBytes(o, data...)...)
	head := s.take(20)
	s.take(int(binary.BigEndian.Uint32(head[16:])))
	return replyType(binary.BigEndian.Uint32(head[12:]))
}

// gone reports that the server hangs up, whatever it says before.
func (s *stranger) gone() {
	s.t.Helper()
	if _, err := io.Copy(io.Discard, s); err != nil {
		if e, ok := err.(net.Error); ok && e.Timeout() { //nolint:errorlint // as net returns it
			s.t.Fatal("the server did not hang up")
		}
	}
}

var clientFlags = []byte{0, 0, 0, flagFixedNewstyle | flagNoZeroes}

func TestHostileClients(t *testing.T) {
	ca := newAuthority(t)
	config := ca.server(t)
	config.ClientAuth = tls.NoClientCert
	export := Export{Name: "", Device: newMemory(1 << 20)}
	required := serveTCP(t, ServerOptions{TLS: config}, export)
	optional := serveTCP(t, ServerOptions{TLS: config, TLSOptional: true}, export)
	plainly := serveTCP(t, ServerOptions{}, export)
	upgrade := func(s *stranger) *stranger {
		if r := s.option(optStartTLS); r != repAck {
			s.t.Fatalf("STARTTLS: %v", r)
		}
		c := tls.Client(s.Conn, &tls.Config{RootCAs: ca.pool, ServerName: "localhost"})
		if err := c.Handshake(); err != nil {
			s.t.Fatal(err)
		}
		return &stranger{s.t, c}
	}
	want := func(s *stranger, want replyType, o optionType, data ...byte) {
		s.t.Helper()
		if got := s.option(o, data...); got != want {
			s.t.Errorf("%v: %v, want %v", o, got, want)
		}
	}
	goDefault := []byte{0, 0, 0, 0, 0, 0}
	for name, c := range map[string]struct {
		port string
		do   func(*stranger)
	}{
		"unknown flags": {plainly, func(s *stranger) { s.say(0, 1, 0, 3); s.gone() }},
		"another magic": {plainly, func(s *stranger) { s.say(append(clientFlags, make([]byte, 16)...)...); s.gone() }},
		"an option of 4 GiB": {plainly, func(s *stranger) {
			s.say(append(clientFlags, optionBytes(optList)[:12]...)...)
			s.say(255, 255, 255, 255)
			s.gone()
		}},
		"a name of 4 GiB":     {plainly, func(s *stranger) { s.say(clientFlags...); want(s, repErrInvalid, optGo, 255, 255, 255, 255, 0, 0) }},
		"no such export":      {plainly, func(s *stranger) { s.say(clientFlags...); want(s, repErrUnknown, optGo, 0, 0, 0, 1, 'x', 0, 0) }},
		"no option of these":  {plainly, func(s *stranger) { s.say(clientFlags...); want(s, repErrUnsup, optionType(4711), 1, 2, 3) }},
		"TLS where none is":   {plainly, func(s *stranger) { s.say(clientFlags...); want(s, repErrPolicy, optStartTLS) }},
		"export without TLS":  {required, func(s *stranger) { s.say(append(clientFlags, optionBytes(optExportName)...)...); s.gone() }},
		"STARTTLS with data":  {required, func(s *stranger) { s.say(clientFlags...); want(s, repErrInvalid, optStartTLS, 1) }},
		"leaves without TLS":  {required, func(s *stranger) { s.say(clientFlags...); want(s, repAck, optAbort); s.gone() }},
		"options for ever":    {plainly, func(s *stranger) { s.say(clientFlags...); s.forever() }},
		"options without TLS": {required, func(s *stranger) { s.say(clientFlags...); s.forever() }},
		"asks without TLS": {required, func(s *stranger) {
			s.say(clientFlags...)
			for _, o := range []optionType{optList, optInfo, optGo, optStructuredReply, optListMeta, optSetMeta, optionType(4711)} {
				want(s, repErrTLSReqd, o, goDefault...)
			}
			want(upgrade(s), repInfo, optGo, goDefault...)
		}},
		"TLS in TLS": {optional, func(s *stranger) {
			s.say(clientFlags...)
			want(upgrade(s), repErrInvalid, optStartTLS)
		}},
		// Somebody on the way could have said what was agreed before TLS.
		"what was agreed before TLS is forgotten": {optional, func(s *stranger) {
			s.say(clientFlags...)
			want(s, repAck, optStructuredReply)
			s = upgrade(s)
			want(s, repErrInvalid, optSetMeta, append([]byte{0, 0, 0, 0, 0, 0, 0, 1}, appendString(nil, contextAllocation)...)...)
		}},
		// … or sends commands that the server would take for ours after TLS.
		"plain text behind STARTTLS": {optional, func(s *stranger) {
			s.say(append(append(clientFlags, optionBytes(optStartTLS)...), optionBytes(optGo, goDefault...)...)...)
			if got := s.take(20); binary.BigEndian.Uint32(got[12:]) != uint32(repAck) {
				s.t.Errorf("STARTTLS: %x", got)
			}
			s.gone()
		}},
		"a write longer than is held": {plainly, func(s *stranger) {
			s.say(append(clientFlags, optionBytes(optExportName)...)...)
			s.take(10)
			s.say(ask(request{cmd: cmdRead, length: MaxPayload + 512}, request{cmd: cmdCache, off: 1 << 19, length: 1 << 20})...)
			for range 2 {
				if e := Errno(binary.BigEndian.Uint32(s.take(16)[4:])); e != EINVAL {
					s.t.Errorf("beyond the end: %v", e)
				}
			}
			var h [requestSize]byte
			(&request{cmd: cmdWrite, length: MaxPayload + 512}).encode(&h)
			s.say(h[:]...)
			s.gone()
		}},
		"no request": {plainly, func(s *stranger) {
			s.say(append(clientFlags, optionBytes(optExportName)...)...)
			s.take(10)
			s.say(make([]byte, requestSize)...)
			s.gone()
		}},
		"leaves in the middle of a write": {plainly, func(s *stranger) {
			s.say(append(clientFlags, optionBytes(optExportName)...)...)
			s.take(10)
			s.say(ask(request{cmd: cmdWrite, length: 1 << 20})[:5000]...)
			s.Close()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := meet(t, c.port)
			s.t = t
			c.do(s)
		})
	}
}

// forever asks until the server hangs up, which it sees when that has arrived.
func (s *stranger) forever() {
	hungUp := make(chan struct{})
	go func() {
		defer close(hungUp)
		io.Copy(io.Discard, s) //nolint:errcheck // it ends with the connection
	}()
	for range 100 * maxOptions {
		if _, err := s.Write(optionBytes(optList)); err != nil {
			return
		}
	}
	select {
	case <-hungUp:
	case <-time.After(10 * time.Second):
		s.t.Error("the server answers 100 times as many options as it may")
	}
}

// TestSilentClients has clients that say nothing hung up on, at any point of the
// handshake, TLS's included; and no more of them are there at once than may be.
func TestSilentClients(t *testing.T) {
	config := newAuthority(t).server(t)
	port := serveTCP(t, ServerOptions{TLS: config, HandshakeTimeout: 50 * time.Millisecond, Connections: 3}, Export{Device: newMemory(512)})
	for _, b := range [][]byte{nil, clientFlags, append(clientFlags, optionBytes(optStartTLS)...)} {
		s := meet(t, port)
		if len(b) > 0 {
			s.say(b...)
		}
		s.gone()
	}
	full := serveTCP(t, ServerOptions{Connections: 2}, Export{Device: newMemory(512)})
	meet(t, full)
	meet(t, full)
	c, err := net.Dial("tcp", "127.0.0.1:"+full)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 18)); n > 0 || err == nil {
		t.Errorf("a client too many is greeted: %d bytes, %v", n, err)
	}
}

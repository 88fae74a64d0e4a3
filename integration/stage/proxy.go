package stage

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// proxy stands between the control plane and the array's control socket, so
// that tests make the array slow or cut its replies without a knob for it in
// the product. I/O does not pass through here. It passes on bytes, and the file
// descriptors that the array hands over with them.
type proxy struct {
	l     *net.UnixListener
	to    string
	delay atomic.Int64 // of a split, in nanoseconds
	// Told of each split before it is passed on, and before its reply is.
	before, after atomic.Pointer[func()]

	mu     sync.Mutex
	conns  map[*net.UnixConn]bool
	closed chan struct{}
	wg     sync.WaitGroup
}

func newProxy(listen, to string) (*proxy, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: listen, Net: "unix"})
	if err != nil {
		return nil, err
	}
	p := &proxy{l: l, to: to, conns: map[*net.UnixConn]bool{}, closed: make(chan struct{})}
	p.wg.Go(p.accept)
	return p, nil
}

func (p *proxy) accept() {
	for {
		c, err := p.l.AcceptUnix()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(c) })
	}
}

// serve passes one connection on. Where the array is gone, it is cut. The array
// is called only when there is something to say to it: it would hang up on a
// caller that keeps silent for as long as a split is held back here.
func (p *proxy) serve(client *net.UnixConn) {
	defer p.drop(client)
	if !p.keep(client) {
		return
	}
	var splitting atomic.Bool
	hear := func(b []byte) {
		if !isSplit(b) {
			return
		}
		tell(&p.before)
		select {
		case <-time.After(time.Duration(p.delay.Load())):
		case <-p.closed:
		}
		splitting.Store(true)
	}
	first, err := receive(client)
	if err != nil {
		return
	}
	hear(first.data)
	array, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: p.to, Net: "unix"})
	if err != nil {
		return
	}
	defer p.drop(array)
	if !p.keep(array) || first.send(array) != nil {
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { p.pass(array, client, hear) })
	p.pass(client, array, func([]byte) {
		if splitting.CompareAndSwap(true, false) {
			tell(&p.after)
		}
	})
	wg.Wait()
}

// isSplit recognises the beginning of a request to split.
func isSplit(b []byte) bool {
	line, _, _ := bytes.Cut(b, []byte("\r\n"))
	return bytes.HasPrefix(line, []byte("POST ")) && bytes.Contains(line, []byte("split"))
}

// pass copies one direction until it ends, and then cuts the connection.
func (p *proxy) pass(to, from *net.UnixConn, see func([]byte)) {
	defer p.drop(to)
	defer p.drop(from)
	for {
		m, err := receive(from)
		if err != nil {
			return
		}
		see(m.data)
		if m.send(to) != nil {
			return
		}
	}
}

// message is what came in at once: bytes, and descriptors with them.
type message struct{ data, oob []byte }

func receive(c *net.UnixConn) (message, error) {
	m := message{data: make([]byte, 64<<10), oob: make([]byte, 4<<10)}
	n, oobn, _, _, err := c.ReadMsgUnix(m.data, m.oob)
	switch {
	case err != nil:
		return message{}, err
	case n == 0:
		return message{}, io.EOF
	}
	m.data, m.oob = m.data[:n], m.oob[:oobn]
	return m, nil
}

// send passes a message on, and closes our copies of its descriptors.
func (m message) send(to *net.UnixConn) error {
	_, _, err := to.WriteMsgUnix(m.data, m.oob, nil)
	closeRights(m.oob)
	return err
}

// closeRights closes our copies of descriptors that were passed on.
func closeRights(oob []byte) {
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for _, m := range msgs {
		if fds, err := syscall.ParseUnixRights(&m); err == nil {
			for _, fd := range fds {
				syscall.Close(fd) //nolint:errcheck // a copy of what the other side has
			}
		}
	}
}

func (p *proxy) keep(c *net.UnixConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.closed:
		return false
	default:
	}
	p.conns[c] = true
	return true
}

func (p *proxy) drop(c *net.UnixConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	c.Close() //nolint:errcheck // may be closed already
}

func (p *proxy) Close() error {
	p.mu.Lock()
	close(p.closed)
	for c := range p.conns {
		c.Close() //nolint:errcheck // its own goroutine says nothing of it either
	}
	err := p.l.Close()
	p.mu.Unlock()
	p.wg.Wait()
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func tell(who *atomic.Pointer[func()]) {
	if f := who.Load(); f != nil {
		(*f)()
	}
}

// OnSplit has f told of each split before the array is; nil: nobody.
func (s *Stage) OnSplit(f func()) { set(&s.proxy.before, f) }

// OnSplitReply has f told when the array has answered a split, before the
// control plane hears of it; nil: nobody.
func (s *Stage) OnSplitReply(f func()) { set(&s.proxy.after, f) }

func set(who *atomic.Pointer[func()], f func()) {
	if f == nil {
		who.Store(nil)
		return
	}
	who.Store(&f)
}

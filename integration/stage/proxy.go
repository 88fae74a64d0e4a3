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

// serve passes one connection on. Where the array is gone, it is cut.
func (p *proxy) serve(client *net.UnixConn) {
	defer p.drop(client)
	if !p.keep(client) {
		return
	}
	array, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: p.to, Net: "unix"})
	if err != nil {
		return
	}
	defer p.drop(array)
	if !p.keep(array) {
		return
	}
	var splitting atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		p.pass(array, client, func(b []byte) {
			line, _, _ := bytes.Cut(b, []byte("\r\n"))
			if bytes.HasPrefix(line, []byte("POST ")) && bytes.Contains(line, []byte("split")) {
				tell(&p.before)
				select {
				case <-time.After(time.Duration(p.delay.Load())):
				case <-p.closed:
				}
				splitting.Store(true)
			}
		})
	})
	p.pass(client, array, func([]byte) {
		if splitting.CompareAndSwap(true, false) {
			tell(&p.after)
		}
	})
	wg.Wait()
}

// pass copies one direction until it ends, and then cuts the connection.
func (p *proxy) pass(to, from *net.UnixConn, see func([]byte)) {
	defer p.drop(to)
	defer p.drop(from)
	b, oob := make([]byte, 64<<10), make([]byte, 4<<10)
	for {
		n, oobn, _, _, err := from.ReadMsgUnix(b, oob)
		if err != nil || n == 0 {
			return
		}
		see(b[:n])
		_, _, err = to.WriteMsgUnix(b[:n], oob[:oobn], nil)
		closeRights(oob[:oobn])
		if err != nil {
			return
		}
	}
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

package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/vdisk"
)

// A worker opens no file by its name. Where a container names further files it
// asks the launcher, one packet each way on a socket of their own: the answer
// carries a descriptor (SCM_RIGHTS, unix(7)) or says why there is none.

// Bounds on what a worker may ask for.
const (
	maxFiles    = 1024 // questions
	maxQuestion = 16 << 10
	maxAnswer   = 16 << 10
)

// question asks for a file that the container of a source names.
type question struct {
	Source int    `json:"source"`
	Name   string `json:"name"`
	Write  bool   `json:"write,omitempty"`
}

// answer goes with one descriptor unless Error says something.
type answer struct {
	Error string        `json:"error,omitempty"`
	File  *configSource `json:"file,omitempty"`
}

// packets makes a pair of connected sockets: ours, and the worker's.
func packets() (*net.UnixConn, *os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "files")
	ours, err := unixConn(os.NewFile(uintptr(pair[0]), "files"))
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return ours, theirs, nil
}

// unixConn takes a socket over; f is closed in any case.
func unixConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errors.New("not a unix socket"), c.Close())
	}
	return u, nil
}

// serveFiles answers a worker's questions until ctx or the worker ends.
func (p *child) serveFiles(ctx context.Context, s *Spec, conn *net.UnixConn, writable bool) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	b := make([]byte, maxQuestion)
	for asked := 1; ; asked++ {
		n, err := conn.Read(b)
		if err != nil || n == 0 {
			return // the worker's end, or ours
		}
		var q question
		f, file, err := (*os.File)(nil), configSource{}, json.Unmarshal(b[:n], &q)
		switch {
		case err != nil:
		case asked > maxFiles:
			err = fmt.Errorf("more than %d further files are needed", maxFiles)
		case q.Source < 0 || q.Source >= len(s.Sources) || s.Sources[q.Source].Files == nil:
			err = errors.New("no further files are opened")
		case q.Write && !writable:
			err = lun.ErrReadOnly
		default:
			f, file, err = p.further(ctx, s, q)
		}
		a, rights := answer{File: &file}, []byte(nil)
		if err != nil {
			a = answer{Error: clean(err.Error())}
		} else {
			rights = unix.UnixRights(int(f.Fd()))
		}
		line, err := json.Marshal(a)
		if err == nil {
			_, _, err = conn.WriteMsgUnix(line, rights, nil)
		}
		if f != nil {
			f.Close()
		}
		if err != nil {
			return
		}
	}
}

// further has the source's resolver open a file and makes the descriptor to pass
// on.
func (p *child) further(ctx context.Context, s *Spec, q question) (_ *os.File, c configSource, err error) {
	d, err := s.Sources[q.Source].Files.Resolve(q.Name, !q.Write)
	if err != nil {
		return nil, c, err
	}
	if _, ok := d.(lun.Filer); !ok && s.Detachable {
		return nil, c, errors.Join(errors.New("it is no file, so that a worker on it can't outlive this process"), vdisk.Close(d))
	}
	f, err := p.hand(ctx, Source{Name: q.Name, Device: d}, &c, q.Write, func() { vdisk.Close(d) })
	return f, c, err
}

// resolver asks the launcher. It is a vdisk.Resolver of one source, and shares
// its socket with the others.
type resolver struct {
	ctx    context.Context
	source int
	mu     *sync.Mutex
	conn   *net.UnixConn
}

// Resolve implements vdisk.Resolver.
func (r *resolver) Resolve(name string, readOnly bool) (lun.Device, error) {
	a, f, err := r.ask(name, !readOnly)
	if err != nil {
		return nil, fmt.Errorf("asking for it: %w", err)
	}
	switch {
	case a.Error != "":
		if f != nil {
			f.Close()
		}
		return nil, errors.New(a.Error)
	case f == nil || a.File == nil:
		return nil, errors.New("asking for it: the answer has no descriptor")
	}
	return a.File.device(r.ctx, f)
}

func (r *resolver) ask(name string, write bool) (a answer, f *os.File, err error) {
	q, err := json.Marshal(question{Source: r.source, Name: name, Write: write})
	if err != nil {
		return a, nil, err
	}
	if len(q) > maxQuestion {
		return a, nil, fmt.Errorf("the name is %d bytes long", len(name))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.conn.Write(q); err != nil {
		return a, nil, err
	}
	b, oob := make([]byte, maxAnswer), make([]byte, unix.CmsgSpace(4))
	n, on, _, _, err := r.conn.ReadMsgUnix(b, oob)
	if err != nil {
		return a, nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:on])
	if err != nil {
		return a, nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil || len(fds) != 1 {
			return a, nil, fmt.Errorf("the answer has %d descriptors (%w)", len(fds), err)
		}
		f = os.NewFile(uintptr(fds[0]), name)
	}
	return a, f, json.Unmarshal(b[:n], &a)
}

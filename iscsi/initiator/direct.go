package initiator

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// directBytes is how much is sent by one system call without the writer, in bytes
// of PDUs. It is copied for that, which takes less time than its pieces would.
const directBytes = 160 << 10

// direct sends short PDUs in one piece, without ever waiting for the target. Whoever
// has set session.writing uses it.
type direct struct {
	raw   syscall.RawConn // nil: not this kind of connection
	try   func(fd uintptr) bool
	buf   []byte
	vec   [][]byte
	piece []byte
	left  []byte // what the socket did not take: the writer's
	n     int
	err   error
}

func (d *direct) init(nc *source) {
	raw, err := nc.SyscallConn()
	if err != nil {
		return
	}
	d.raw = raw
	d.try = func(fd uintptr) bool {
		for {
			if d.n, d.err = unix.SendmsgN(int(fd), d.piece, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL); !errors.Is(d.err, syscall.EINTR) {
				return true // one attempt: nobody waits here
			}
		}
	}
}

// write sends a piece and says how much of it is left.
func (d *direct) write(piece []byte) (left []byte, err error) {
	d.piece, d.n, d.err = piece, 0, nil
	err = d.raw.Write(d.try)
	d.piece = nil
	if err == nil && d.err != nil && !errors.Is(d.err, syscall.EAGAIN) {
		err = d.err
	}
	return piece[max(d.n, 0):], err
}

// short reports whether what is queued is for sendShort. s.mu is held.
func (s *session) short() bool {
	if s.direct.raw == nil || len(s.direct.left) > 0 {
		return false
	}
	n := 0
	for i := range s.queue {
		o := &s.queue[i]
		if n += len(o.h) + len(o.digest) + len(o.data) + len(o.tail); n > directBytes {
			return false
		}
	}
	return true
}

// sendShort sends all that is queued. It is called with s.mu held and s.writing set,
// and lets s.mu go meanwhile.
func (s *session) sendShort() {
	if s.err != nil || len(s.queue) == 0 {
		return
	}
	batch := s.queue
	s.queue, s.spare = s.spare[:0], nil
	s.mu.Unlock()
	d := &s.direct
	stat := s.expStatSN.Load()
	d.buf = d.buf[:0]
	for i := range batch {
		batch[i].h.SetExpStatSN(stat)
		d.vec = batch[i].encode(d.vec[:0], &s.par)
		for _, p := range d.vec {
			d.buf = append(d.buf, p...)
		}
	}
	clear(d.vec)
	left, err := d.write(d.buf)
	if err != nil {
		s.fail(err)
	}
	s.mu.Lock()
	d.left = left
	s.sent(batch)
	if cap(batch) <= 4*maxDepth {
		s.spare = batch
	}
}

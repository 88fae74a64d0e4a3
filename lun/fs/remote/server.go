package remote

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/cleave-san/cleave/lun/fs"
)

// Serve answers requests about f on one connection, one after the other, until
// that ends; then it is nil. The caller closes the connection.
func Serve(conn io.ReadWriter, f fs.FS) error {
	s := server{f: f, r: bufio.NewReader(conn)}
	var in, out []byte
	for {
		kind, body, buf, err := receive(s.r, in, maxRequest)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		in = buf
		out, err = s.answer(frame(out, statusOK), op(kind), &fields{b: body})
		if err != nil {
			out = putError(frame(out, statusError), err)
		}
		if err := send(conn, out); err != nil {
			return err
		}
	}
}

type server struct {
	f fs.FS
	r *bufio.Reader

	ref  fs.Ref // of
	file fs.File
}

var (
	errFull    = errors.New("the answer is full")
	errRequest = errors.New("a request that makes no sense")
)

func (s *server) open(r fs.Ref) (fs.File, error) {
	if s.file == nil || s.ref != r {
		f, err := s.f.Open(r)
		if err != nil {
			return nil, err
		}
		s.ref, s.file = r, f
	}
	return s.file, nil
}

// answer appends the answer to a request.
func (s *server) answer(b []byte, o op, q *fields) ([]byte, error) {
	if o == opInfo {
		return s.info(b)
	}
	r := q.ref()
	switch o {
	case opStat:
		st, err := s.f.Stat(r)
		return putStat(b, st), err
	case opLookup:
		name := q.text()
		if q.bad {
			return b, errRequest
		}
		found, err := s.f.Lookup(r, name)
		return putRef(b, found), err
	case opList:
		return s.list(b, r, q.number(), q.number() != 0)
	case opSize:
		f, err := s.open(r)
		if err != nil {
			return b, err
		}
		return binary.AppendUvarint(b, uint64(f.Size())), nil
	case opRead:
		return s.read(b, r, q.size(), q.size())
	case opExtents:
		return s.extents(b, r, q.size(), q.size())
	case opReadlink:
		target, err := s.f.Readlink(r)
		return putText(b, target), err
	case opXattrs:
		err := s.f.Xattrs(r, func(name string, value []byte) error {
			if len(b)+len(name)+len(value)+20 > maxAnswer {
				return fmt.Errorf("%v: its attributes are more than %d bytes", r, maxAnswer)
			}
			b = append(binary.AppendUvarint(putText(b, name), uint64(len(value))), value...)
			return nil
		})
		return b, err
	}
	return b, errRequest
}

// info is the description, and the root.
func (s *server) info(b []byte) ([]byte, error) {
	i := s.f.Info()
	w := wireInfo{Info: i}
	w.Info.Warnings = nil
	for _, err := range i.Warnings {
		w.Warnings = append(w.Warnings, clean(err.Error()))
	}
	j, err := json.Marshal(w)
	return append(putRef(b, s.f.Root()), j...), err
}

type wireInfo struct {
	Info     fs.Info
	Warnings []string
}

// list appends whether there is more, and entries with or without their Stat.
func (s *server) list(b []byte, dir fs.Ref, after uint64, stats bool) ([]byte, error) {
	begin, n := len(b), 0
	b = append(b, 0)
	err := s.f.List(dir, after, func(e fs.Entry) error {
		if n++; n > batch || len(b)-begin > batchBytes {
			return errFull
		}
		b = append(putRef(putText(b, e.Name), e.Ref), byte(e.Type))
		b = binary.AppendUvarint(b, e.Next)
		if !stats {
			return nil
		}
		if st, err := s.f.Stat(e.Ref); err != nil {
			b = putText(append(b, statusError), string(putError(nil, err)))
		} else {
			b = putStat(append(b, statusOK), st)
		}
		return nil
	})
	switch {
	case err == errFull:
		b[begin] = 1
	case err != nil && n > 0: // what was read first counts; the next request meets the error
		b[begin] = 1
	case err != nil:
		return b, err
	}
	return b, nil
}

func (s *server) read(b []byte, r fs.Ref, off, n int64) ([]byte, error) {
	f, err := s.open(r)
	if err != nil {
		return b, err
	}
	n = min(n, maxRead)
	begin := len(b)
	if cap(b)-begin < int(n) {
		b = append(make([]byte, 0, begin+maxRead), b...)
	}
	b = b[:begin+int(n)]
	k, err := f.ReadAt(b[begin:], off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return b[:begin+k], err
}

// extents appends runs until the answer is full: the client goes on after the
// last.
func (s *server) extents(b []byte, r fs.Ref, off, n int64) ([]byte, error) {
	f, err := s.open(r)
	if err != nil {
		return b, err
	}
	count := 0
	err = f.Extents(off, n, func(e fs.Extent) error {
		if count++; count > 4*batch {
			return errFull
		}
		b = append(binary.AppendUvarint(b, uint64(e.Len)), kindByte(e))
		b = binary.AppendUvarint(b, uint64(e.Device))
		return nil
	})
	if err == errFull || err != nil && count > 0 {
		err = nil
	}
	return b, err
}

// sharedBit is in the byte of an extent's kind: its bytes are shared.
const sharedBit = 0x40

func kindByte(e fs.Extent) byte {
	if e.Shared {
		return byte(e.Kind) | sharedBit
	}
	return byte(e.Kind)
}

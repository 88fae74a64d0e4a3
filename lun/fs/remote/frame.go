package remote

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
)

// op is what a request is for.
type op byte

const (
	opInfo op = iota + 1
	opStat
	opLookup
	opList
	opSize // of a regular file: Open
	opRead
	opExtents
	opReadlink
	opXattrs
)

// Status of an answer.
const (
	statusOK = iota
	statusError
)

// Bounds, in bytes and entries.
const (
	maxRequest = 4 << 10
	maxAnswer  = 8 << 20
	maxRead    = 4 << 20 // of one opRead
	batch      = 512     // entries of one opList
	batchBytes = 256 << 10
	maxText    = 4096
)

var errFrame = errors.New("the file system's worker answers what makes no sense")

// receive reads a frame into buf, which it may make larger.
func receive(r io.Reader, buf []byte, limit int) (kind byte, body, _ []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, buf, err
	}
	n := int(binary.LittleEndian.Uint32(head[:4]))
	if n > limit {
		return 0, nil, buf, fmt.Errorf("%w: %d bytes", errFrame, n)
	}
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	body = buf[:n]
	_, err = io.ReadFull(r, body)
	return head[4], body, buf, err
}

// frame begins a message; send fills its length in.
func frame(buf []byte, kind byte) []byte { return append(buf[:0], 0, 0, 0, 0, kind) }

func send(w io.Writer, b []byte) error {
	binary.LittleEndian.PutUint32(b, uint32(len(b)-5))
	_, err := w.Write(b)
	return err
}

func putText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func putRef(b []byte, r fs.Ref) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, r.Tree), r.Inode)
}

func putTime(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return append(b, 0)
	}
	return binary.AppendUvarint(binary.AppendVarint(append(b, 1), t.Unix()), uint64(t.Nanosecond()))
}

func bit(is bool) uint64 {
	if is {
		return 1
	}
	return 0
}

func putStat(b []byte, st fs.Stat) []byte {
	b = putRef(b, st.Ref)
	for _, v := range []uint64{uint64(st.Type), uint64(st.Mode), uint64(st.UID), uint64(st.GID), uint64(st.Links), uint64(st.Size),
		uint64(st.Allocated), uint64(st.Major), uint64(st.Minor), bit(st.NoXattrs)} {
		b = binary.AppendUvarint(b, v)
	}
	for _, t := range []time.Time{st.Modified, st.Changed, st.Accessed, st.Born} {
		b = putTime(b, t)
	}
	return b
}

// fields takes a message apart. After the first thing that doesn't fit, bad is
// set and all the rest is zero.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) number() uint64 {
	v, n := binary.Uvarint(f.b)
	if n <= 0 {
		f.b, f.bad = nil, true
		return 0
	}
	f.b = f.b[n:]
	return v
}

// size is a number that is no more than an int64 and not negative.
func (f *fields) size() int64 {
	v := int64(f.number())
	if v < 0 {
		f.b, f.bad = nil, true
		return 0
	}
	return v
}

func (f *fields) text() string { return string(f.bytes()) }

func (f *fields) bytes() []byte {
	n := f.number()
	if n > uint64(len(f.b)) {
		f.b, f.bad = nil, true
		return nil
	}
	out := f.b[:n]
	f.b = f.b[n:]
	return out
}

func (f *fields) ref() fs.Ref { return fs.Ref{Tree: f.number(), Inode: f.number()} }

func (f *fields) time() time.Time {
	if f.number() == 0 {
		return time.Time{}
	}
	sec, n := binary.Varint(f.b)
	if n <= 0 {
		f.b, f.bad = nil, true
		return time.Time{}
	}
	f.b = f.b[n:]
	return time.Unix(sec, int64(f.number()%1e9))
}

func (f *fields) stat() fs.Stat {
	return fs.Stat{
		Ref: f.ref(), Type: fs.Type(f.number()), Mode: uint16(f.number()) & 0o7777, UID: uint32(f.number()), GID: uint32(f.number()),
		Links: uint32(f.number()), Size: f.size(), Allocated: int64(f.number()), Major: uint32(f.number()), Minor: uint32(f.number()),
		NoXattrs: f.number() != 0,
		Modified: f.time(), Changed: f.time(), Accessed: f.time(), Born: f.time(),
	}
}

// failure is an error as it goes over.
type failure struct {
	Text   string           `json:"text"`
	Cause  string           `json:"cause,omitempty"`
	Format *lun.FormatError `json:"format,omitempty"`
}

var causes = map[string]error{
	"not-exist": fs.ErrNotExist, "not-dir": fs.ErrNotDir, "not-file": fs.ErrNotFile, "not-link": fs.ErrNotLink,
	"dirty": fs.ErrDirty, "encrypted": fs.ErrEncrypted, "too-deep": fs.ErrTooDeep, "range": lun.ErrOutOfRange,
}

func putError(b []byte, err error) []byte {
	e := failure{Text: clean(err.Error())}
	for name, cause := range causes {
		if errors.Is(err, cause) {
			e.Cause = name
		}
	}
	var fe *lun.FormatError
	if errors.As(err, &fe) {
		c := *fe
		if c.Value != nil {
			c.Value = clean(fmt.Sprint(c.Value))
		}
		e.Format = &c
	}
	j, err := json.Marshal(e)
	if err != nil {
		j = []byte(`{"text":"an error that has no text"}`)
	}
	return append(b, j...)
}

func clean(s string) string {
	return strings.ToValidUTF8(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s[:min(len(s), maxText)]), "?")
}

func (e *failure) Error() string { return clean(e.Text) }

func (e *failure) Is(target error) bool {
	cause, ok := causes[e.Cause]
	return ok && cause == target
}

func (e *failure) As(target any) bool {
	fe, ok := target.(**lun.FormatError)
	if ok && e.Format != nil {
		*fe = e.Format
		return true
	}
	return false
}

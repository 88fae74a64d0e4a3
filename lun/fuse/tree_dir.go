package fuse

import (
	"encoding/binary"
	"errors"
	"math"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun/fs"
)

// listAhead is how many entries of a directory are asked for at once.
const listAhead = 4096

// directory is one that is open. Its entries are numbered in the order of the
// disk, which is where the kernel says that it wants to go on: 0 and 1 are "."
// and "..".
type directory struct {
	ref fs.Ref

	mu     sync.Mutex
	first  uint64 // number of the first of those held
	held   []listed
	after  uint64 // where the list goes on after them
	ended  bool
	failed error // why it can't
}

// listed is an entry with its description, or without.
type listed struct {
	fs.Entry
	st  fs.Stat
	err error
}

var errEnough = errors.New("enough entries")

// entry is the one of that number, nil after the last.
func (d *directory) entry(f fs.FS, number uint64) (*listed, error) {
	if number < d.first {
		d.first, d.held, d.after, d.ended, d.failed = 0, nil, 0, false, nil
	}
	for number-d.first >= uint64(len(d.held)) {
		switch {
		case d.failed != nil:
			return nil, d.failed
		case d.ended:
			return nil, nil
		}
		d.first += uint64(len(d.held))
		d.held = d.held[:0]
		err := fs.ListStat(f, d.ref, d.after, func(e fs.Entry, st fs.Stat, err error) error {
			d.held = append(d.held, listed{e, st, err})
			d.after = e.Next
			if len(d.held) == listAhead {
				return errEnough
			}
			return nil
		})
		if err == nil {
			d.ended = true
		} else if !errors.Is(err, errEnough) {
			d.failed = err // after those that were read
		}
	}
	return &d.held[number-d.first], nil
}

// readdir answers both of its requests: names, and names with attributes.
func (t *tree) readdir(r request, buf []byte) ([]byte, error) {
	d, err := held[*directory](t, r)
	if err != nil {
		return nil, err
	}
	number, room := r.span()
	if number > math.MaxInt64 {
		return nil, unix.EINVAL
	}
	plus := r.op == opReaddirPlus
	d.mu.Lock()
	defer d.mu.Unlock()
	b := buf[: outHeader : outHeader+int(min(room, maxIO))]
	for ; ; number++ {
		e := &listed{Entry: fs.Entry{Name: ".", Ref: d.ref, Type: fs.Directory}}
		dot := number < 2
		switch {
		case number == 1:
			e.Name = ".."
		case number > 1:
			if e, err = d.entry(t.f, number-2); err != nil && len(b) > outHeader {
				e = nil // the next request meets it
			} else if err != nil {
				return nil, err
			}
		}
		if e == nil {
			break
		}
		fixed := dirent
		if plus {
			fixed += entryOut
		}
		at, size := len(b), (fixed+len(e.Name)+7)&^7
		if size > cap(b)-at {
			break
		}
		b = b[:at+size]
		clear(b[at:])
		// Without a description the kernel asks by Lookup, and hears why.
		if plus && !dot && e.err == nil {
			t.putEntry(b[at:], e.Ref, e.st)
		}
		p := b[at+fixed-dirent:]
		le := binary.NativeEndian
		le.PutUint64(p, t.inode(e.Ref))
		le.PutUint64(p[8:], number+1)
		le.PutUint32(p[16:], uint32(len(e.Name)))
		le.PutUint32(p[20:], formats[e.Type]>>12)
		copy(p[dirent:], e.Name)
	}
	putHeader(b, r.unique, 0, len(b)-outHeader)
	return b, nil
}

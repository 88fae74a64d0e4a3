package fstest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cleave-san/cleave/lun/fs"
)

// Tree is all that is said of files, by path ("" is the root): what they are,
// in one line each.
type Tree map[string]Line

// Line describes a file. Names of one file have the same Inode.
type Line struct {
	What    string // type, mode, owner, links, size, device, target
	Times   string // modified, changed
	Inode   uint64
	Xattrs  string
	Content string // SHA-256
	Map     string // where it lies
}

const stamp = "2006-01-02T15:04:05.000000000"

func what(t fs.Type, mode uint16, uid, gid, links uint32, size int64, major, minor uint32, target string) string {
	if t == fs.Directory {
		size = 0 // file systems differ in what that is
	}
	return fmt.Sprintf("%v %04o %d:%d links=%d size=%d dev=%d,%d %q", t, mode, uid, gid, links, size, major, minor, target)
}

func times(modified, changed time.Time) string {
	return modified.UTC().Format(stamp) + " " + changed.UTC().Format(stamp)
}

// Of reads a whole file system. What it says of where data lies is compared with
// what is there on dev, if that is not nil.
func Of(f fs.FS, dev io.ReaderAt) (Tree, error) {
	out := make(Tree)
	err := fs.Walk(f, f.Root(), func(v fs.Visit) error {
		if v.Err != nil {
			return fmt.Errorf("%q: %w", v.Path, v.Err)
		}
		l, err := line(f, dev, v.Stat)
		if err != nil {
			return fmt.Errorf("%q: %w", v.Path, err)
		}
		out[v.Path] = l
		return nil
	})
	return out, err
}

func line(f fs.FS, dev io.ReaderAt, st fs.Stat) (l Line, err error) {
	target := ""
	if st.Type == fs.Symlink {
		if target, err = f.Readlink(st.Ref); err != nil {
			return l, err
		}
	}
	l.Inode = st.Ref.Inode
	l.What = what(st.Type, st.Mode, st.UID, st.GID, st.Links, st.Size, st.Major, st.Minor, target)
	l.Times = times(st.Modified, st.Changed)
	var xs []string
	if err := f.Xattrs(st.Ref, func(name string, value []byte) error {
		xs = append(xs, fmt.Sprintf("%s=%x", name, sha256.Sum256(value)))
		return nil
	}); err != nil {
		return l, err
	}
	slices.Sort(xs)
	l.Xattrs = strings.Join(xs, "\n")
	if st.Type != fs.Regular {
		return l, nil
	}
	c, err := f.Open(st.Ref)
	if err != nil {
		return l, err
	}
	if c.Size() != st.Size {
		return l, fmt.Errorf("Open says %d bytes, Stat %d", c.Size(), st.Size)
	}
	h := sha256.New()
	if _, err := io.CopyBuffer(h, io.NewSectionReader(c, 0, st.Size), make([]byte, 1<<20)); err != nil {
		return l, err
	}
	l.Content = fmt.Sprintf("%x", h.Sum(nil))
	var m mapText
	at := int64(0)
	err = c.Extents(0, st.Size, func(e fs.Extent) error {
		if e.Off != at || e.Len <= 0 {
			return fmt.Errorf("extents are not consecutive: %+v after byte %d", e, at)
		}
		at += e.Len
		if e.Kind == fs.Data && dev != nil {
			if err := same(c, e.Off, dev, e.Device, e.Len); err != nil {
				return err
			}
		}
		if e.Kind != fs.Hole {
			m.add(e.Off, e.Device, e.Len, e.Kind == fs.Unwritten, e.Kind == fs.Encoded)
		}
		return nil
	})
	if err == nil && at != st.Size {
		err = fmt.Errorf("extents end at byte %d of %d", at, st.Size)
	}
	l.Map = m.String()
	return l, err
}

// same compares n bytes of two readers.
func same(a io.ReaderAt, aOff int64, b io.ReaderAt, bOff, n int64) error {
	x, y := make([]byte, 64<<10), make([]byte, 64<<10)
	for done := int64(0); done < n; done += int64(len(x)) {
		k := min(int64(len(x)), n-done)
		if got, err := a.ReadAt(x[:k], aOff+done); int64(got) < k {
			return err
		}
		if got, err := b.ReadAt(y[:k], bOff+done); int64(got) < k {
			return err
		}
		if !bytes.Equal(x[:k], y[:k]) {
			return fmt.Errorf("what is at byte %d of the device is not what is at byte %d of the file", bOff+done, aOff+done)
		}
	}
	return nil
}

// mapText joins runs that follow each other.
type mapText struct {
	runs []mapRun
}

type mapRun struct {
	off, dev, n        int64
	unwritten, encoded bool
}

func (m *mapText) add(off, dev, n int64, unwritten, encoded bool) {
	if encoded {
		dev = -1
	}
	if k := len(m.runs) - 1; k >= 0 {
		l := &m.runs[k]
		if l.off+l.n == off && l.unwritten == unwritten && l.encoded == encoded && (encoded || l.dev+l.n == dev) {
			l.n += n
			return
		}
	}
	m.runs = append(m.runs, mapRun{off, dev, n, unwritten, encoded})
}

func (m *mapText) String() string {
	var b strings.Builder
	for _, r := range m.runs {
		fmt.Fprintf(&b, "%d+%d@%d", r.off, r.n, r.dev)
		if r.unwritten {
			b.WriteByte('u')
		}
		b.WriteByte(' ')
	}
	return b.String()
}

// Options of Compare say what can't be the same.
type Options struct {
	// Leave is called for each path; true leaves it out.
	Leave func(path string) bool
	// NoInodes and NoMap leave out inode numbers, and places.
	NoInodes, NoMap bool
	// Recovered is when the kernel began to mount what wanted is of, if it may
	// have ended truncations then: it gives such files the time of that.
	Recovered time.Time
}

// touched reports whether a file was changed by the mount. Its time is the clock's
// last tick, or the whole second where inodes have room for no more.
func (o Options) touched(l Line) bool {
	if o.Recovered.IsZero() {
		return false
	}
	_, changed, _ := strings.Cut(l.Times, " ")
	since := o.Recovered.Add(-tick)
	if strings.HasSuffix(changed, ".000000000") {
		since = since.Truncate(time.Second)
	}
	return changed >= since.UTC().Format(stamp)
}

// tick is more than one of the kernel's coarse clock.
const tick = 20 * time.Millisecond

// Compare fails the test for each difference, but the first ten.
func Compare(tb testing.TB, got, want Tree, o Options) {
	tb.Helper()
	if err := Differ(got, want, o); err != nil {
		tb.Error(err)
	}
}

// Differ is what Compare would say, as an error.
func Differ(got, want Tree, o Options) error {
	var errs []error
	for _, path := range slices.Sorted(maps.Keys(want)) {
		if o.Leave != nil && o.Leave(path) {
			continue
		}
		g, ok := got[path]
		w := want[path]
		if o.NoInodes {
			g.Inode, w.Inode = 0, 0
		}
		if o.NoMap {
			g.Map, w.Map = "", ""
		}
		if o.touched(w) {
			g.Times, w.Times = "", ""
		}
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("%q is missing: %+v", path, w))
		case g != w:
			errs = append(errs, fmt.Errorf("%q is\n\t%+v, want\n\t%+v", path, g, w))
		}
	}
	for path, g := range got {
		if _, ok := want[path]; !ok && (o.Leave == nil || !o.Leave(path)) {
			errs = append(errs, fmt.Errorf("%q should not be there: %+v", path, g))
		}
	}
	if len(errs) > 10 {
		errs = append(errs[:10], fmt.Errorf("and %d more", len(errs)-10))
	}
	return errors.Join(errs...)
}

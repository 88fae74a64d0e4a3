package fat

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cleave-san/cleave/lun/fs"
)

// Attributes of an entry, and what bits of DIR_NTRes mean.
const (
	attrReadOnly = 0x01
	attrVolume   = 0x08
	attrDir      = 0x10
	attrLong     = 0x0F

	lowerBase = 0x08
	lowerExt  = 0x10

	deleted   = 0xE5
	entrySize = 32
	// maxDir bounds a directory, in bytes: 65,536 entries.
	maxDir = 65536 * entrySize
)

// oem is code page 437 above ASCII.
var oem = []rune("ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u00A0")

// entry is a short one as it is on the disk.
type entry struct {
	raw     [entrySize]byte
	cluster uint32
	size    int64
}

func (f *FS) entry(b []byte) *entry {
	e := &entry{raw: [entrySize]byte(b), cluster: uint32(le.Uint16(b[26:])), size: int64(le.Uint32(b[28:]))}
	if f.s.bits == 32 {
		e.cluster |= uint32(le.Uint16(b[20:])) << 16
	}
	return e
}

func (e *entry) dir() bool { return e.raw[11]&attrDir != 0 }

// get reads the entry that a Ref names.
func (f *FS) get(r fs.Ref) (*entry, error) {
	if r == f.Root() {
		e := &entry{cluster: f.s.rootAt}
		e.raw[11] = attrDir
		return e, nil
	}
	none := fmt.Errorf("fat %v: %w", r, fs.ErrNotExist)
	if at := int64(r.Inode); r.Tree != 0 || at%entrySize != 0 || at < f.s.root || at > f.s.size-entrySize {
		return nil, none
	}
	b := make([]byte, entrySize)
	if _, err := f.meta.ReadAt(b, int64(r.Inode)); err != nil {
		return nil, fmt.Errorf("fat %v: %w", r, err)
	}
	if b[0] == 0 || b[0] == deleted || b[11]&attrVolume != 0 {
		return nil, none
	}
	return f.entry(b), nil
}

// Stat implements fs.FS.
func (f *FS) Stat(r fs.Ref) (fs.Stat, error) {
	e, err := f.get(r)
	if err != nil {
		return fs.Stat{}, err
	}
	b := e.raw[:]
	st := fs.Stat{Ref: r, Type: fs.Regular, Mode: 0o644, Links: 1, Size: e.size, NoXattrs: true,
		Modified: stamp(le.Uint16(b[24:]), le.Uint16(b[22:]), 0), Accessed: stamp(le.Uint16(b[18:]), 0, 0),
		Born: stamp(le.Uint16(b[16:]), le.Uint16(b[14:]), b[13])}
	if e.dir() {
		st.Type, st.Mode, st.Size = fs.Directory, 0o755, 0
	}
	if b[11]&attrReadOnly != 0 {
		st.Mode &^= 0o222
	}
	st.Allocated = (st.Size + f.s.cluster - 1) / f.s.cluster * f.s.cluster
	return st, nil
}

// stamp is a date and a time of two seconds, with hundredths of one; zero if there is none.
func stamp(date, clock uint16, hundredths uint8) time.Time {
	if date == 0 {
		return time.Time{}
	}
	t := time.Date(1980+int(date>>9), time.Month(date>>5&15), int(date&31), int(clock>>11), int(clock>>5&63), int(clock&31)*2, 0, time.UTC)
	return t.Add(time.Duration(hundredths) * 10 * time.Millisecond)
}

// Lookup implements fs.FS. Names are compared as they are shown, with their case.
func (f *FS) Lookup(dir fs.Ref, name string) (fs.Ref, error) {
	ref, err := fs.Search(f, dir, name)
	if err == fs.ErrNotExist {
		err = fmt.Errorf("%.200q in fat %v: %w", name, dir, err)
	}
	return ref, err
}

// List implements fs.FS. Next is the byte after an entry.
func (f *FS) List(dir fs.Ref, after uint64, fn func(fs.Entry) error) error {
	d, err := f.get(dir)
	if err != nil {
		return err
	}
	if !d.dir() {
		return fmt.Errorf("fat %v: %w", dir, fs.ErrNotDir)
	}
	runs := []run{{f.s.root, 0, f.s.rootSize}}
	if d.cluster != 0 {
		if runs, err = f.runs(d.cluster, -1); err != nil {
			return fmt.Errorf("fat %v: %w", dir, err)
		}
	} else if dir != f.Root() || f.s.bits == 32 {
		return damaged(int64(dir.Inode), "DIR_FstClus", 0, "a directory has no cluster")
	}
	return f.entries(dir, runs, after, fn)
}

// entries calls fn for those in the runs of a directory.
func (f *FS) entries(dir fs.Ref, runs []run, after uint64, fn func(fs.Entry) error) error {
	var long longName
	b := make([]byte, entrySize)
	for _, r := range runs {
		for i := int64(0); i+entrySize <= r.n; i += entrySize {
			at, next := r.at+i, uint64(r.off+i+entrySize)
			if _, err := f.meta.ReadAt(b, at); err != nil {
				return fmt.Errorf("fat %v: %w", dir, err)
			}
			if b[0] == 0 {
				return nil
			}
			if b[0] != deleted && b[11]&0x3F == attrLong {
				long.add(b)
				continue
			}
			name := long.take(b)
			if b[0] == deleted || b[11]&attrVolume != 0 || b[0] == '.' || next <= after {
				continue
			}
			if name == "" {
				name = shortName(b)
			}
			if !fs.GoodName(name) {
				return damaged(at, "DIR_Name", name, "is no name of a file")
			}
			e := fs.Entry{Name: name, Ref: fs.Ref{Inode: uint64(at)}, Type: fs.Regular, Next: next}
			if b[11]&attrDir != 0 {
				e.Type = fs.Directory
			}
			if err := fn(e); err != nil {
				return err
			}
		}
	}
	return nil
}

// longName gathers the parts of one, of 13 UTF-16 units each, the last part first.
type longName struct {
	units []uint16
	sum   byte
	next  byte // part that is missing before the short entry; 0: none
}

func (l *longName) add(b []byte) {
	order := b[0] & 0x3F
	if b[0]&0x40 != 0 {
		*l = longName{sum: b[13], next: order}
	}
	if order == 0 || order > 20 || order != l.next || b[13] != l.sum {
		*l = longName{}
		return
	}
	part := make([]uint16, 0, 13+len(l.units))
	for _, r := range [][2]int{{1, 11}, {14, 26}, {28, 32}} {
		for i := r[0]; i < r[1]; i += 2 {
			part = append(part, le.Uint16(b[i:]))
		}
	}
	if l.units, l.next = append(part, l.units...), order-1; l.next == 0 {
		l.next = 0xFF // complete
	}
}

// take returns the long name of a short entry, "" if it has none, and forgets it.
func (l *longName) take(b []byte) string {
	old := *l
	*l = longName{}
	sum := byte(0)
	for _, c := range b[:11] {
		sum = sum>>1 | sum<<7
		sum += c
	}
	if old.next != 0xFF || sum != old.sum {
		return ""
	}
	if end := slices.Index(old.units, 0); end >= 0 {
		old.units = old.units[:end]
	}
	return fs.FromUTF16(old.units)
}

// shortName is the name of eight and three characters.
func shortName(b []byte) string {
	part := func(b []byte, lower bool) string {
		var out strings.Builder
		for _, c := range b {
			switch {
			case c >= 0x80:
				out.WriteRune(oem[c-0x80])
			case lower && c >= 'A' && c <= 'Z':
				out.WriteByte(c + 'a' - 'A')
			default:
				out.WriteByte(c)
			}
		}
		return strings.TrimRight(out.String(), " ")
	}
	base := append([]byte(nil), b[:8]...)
	if base[0] == 0x05 {
		base[0] = deleted
	}
	name := part(base, b[12]&lowerBase != 0)
	if ext := part(b[8:11], b[12]&lowerExt != 0); ext != "" {
		name += "." + ext
	}
	return name
}

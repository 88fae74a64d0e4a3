package ntfs

import (
	"fmt"
	"io"

	"github.com/cleave-san/cleave/lun/fs"
)

// maxList bounds an attribute list, in bytes, as Windows does.
const maxList = 256 << 10

// inode is a file: a record with all its attributes, wherever they lie.
type inode struct {
	*record
	attrs []*attr
}

func (n *inode) dir() bool { return le.Uint16(n.b[22:])&recordDir != 0 }

// find is an attribute, nil if there is none.
func (n *inode) find(kind uint32, name string) *attr {
	for _, a := range n.attrs {
		if a.kind == kind && a.name == name {
			return a
		}
	}
	return nil
}

// inode reads a file. It is fs.ErrNotExist where the record is a part of another.
func (f *FS) inode(number uint64) (*inode, error) {
	r, err := f.record(number)
	if err != nil {
		return nil, err
	}
	if le.Uint64(r.b[32:]) != 0 {
		return nil, fmt.Errorf("ntfs record %d: %w", number, fs.ErrNotExist)
	}
	return f.assemble(r)
}

// assemble reads the attributes of a base record. Extents in other records are
// read only when a place in them is asked for.
func (f *FS) assemble(r *record) (*inode, error) {
	n := &inode{record: r}
	var list *attr
	err := r.attributes(func(b []byte, off int) error {
		a, p, err := r.parseAttr(b, off)
		if err != nil {
			return err
		}
		if a.kind == typeList {
			list = a
		}
		if p != nil {
			a.parts = []part{*p}
			if p.lowest != 0 && a.kind != typeList {
				return nil // its first extent is elsewhere; the list says where
			}
		}
		n.attrs = append(n.attrs, a)
		return nil
	})
	if err != nil || list == nil {
		return n, err
	}
	b, err := f.value(list, maxList)
	if err != nil {
		return nil, err
	}
	return n, f.addListed(n, b)
}

// addListed adds what an attribute list says is elsewhere. Its order is by type,
// name and lowest VCN.
func (f *FS) addListed(n *inode, list []byte) error {
	others := make(map[uint64]*record)
	var last *attr
	for len(list) > 0 {
		if len(list) < 26 {
			return n.damaged(0, "AttributeList", len(list), "ends in the middle of an entry")
		}
		size, nameLen, nameAt := int(le.Uint16(list[4:])), int(list[6]), int(list[7])
		if size < 26 || size > len(list) || nameAt+2*nameLen > size {
			return n.damaged(0, "AttributeList", size, "an entry is outside of the list")
		}
		kind, name := le.Uint32(list), name16(list[nameAt:nameAt+2*nameLen])
		p := part{record: le.Uint64(list[16:]) & numberMask, instance: le.Uint16(list[24:]), lowest: le.Uint64(list[8:])}
		list = list[size:]
		if kind == typeList {
			continue
		}
		if p.lowest != 0 {
			if last == nil || last.kind != kind || last.name != name || last.resident() {
				return n.damaged(0, "AttributeList", p.lowest, "an extent of an attribute has no first one")
			}
			last.parts = append(last.parts, p)
			continue
		}
		if p.record == n.number {
			if last = n.find(kind, name); last == nil {
				return n.damaged(0, "AttributeList", fmt.Sprintf("%#x", kind), "an attribute is not where the list says")
			}
			continue
		}
		other := others[p.record]
		if other == nil {
			var err error
			if other, err = f.extension(p.record, n.number); err != nil {
				return err
			}
			others[p.record] = other
		}
		a, err := other.pick(kind, p.instance)
		if err != nil {
			return err
		}
		last, n.attrs = a, append(n.attrs, a)
	}
	return nil
}

// extension reads a record that holds attributes of another.
func (f *FS) extension(number, base uint64) (*record, error) {
	r, err := f.record(number)
	if err != nil {
		return nil, damaged(-1, "AttributeList", number, fmt.Sprintf("record %d: a record of its attributes is not in use or damaged: %v", base, err))
	}
	if of := r.base(); of != base {
		return nil, r.damaged(32, "BaseFileRecordSegment", of, fmt.Sprintf("is not %d, whose attribute it has", base))
	}
	return r, nil
}

// pick is an attribute by its instance.
func (r *record) pick(kind uint32, instance uint16) (*attr, error) {
	var found *attr
	err := r.attributes(func(b []byte, off int) error {
		if le.Uint32(b) != kind || le.Uint16(b[14:]) != instance || found != nil {
			return nil
		}
		a, p, err := r.parseAttr(b, off)
		if p != nil {
			a.parts = []part{*p}
		}
		found = a
		return err
	})
	if err == nil && found == nil {
		err = r.damaged(0, "AttributeList", instance, "an attribute is not where a list says")
	}
	return found, err
}

// value is the content of an attribute of up to limit bytes.
func (f *FS) value(a *attr, limit int64) ([]byte, error) {
	if a.resident() {
		return a.value, nil
	}
	if a.size > limit {
		return nil, a.where.damaged(a.off+48, "FileSize", a.size, fmt.Sprintf("an attribute of type %#x has at most %d bytes", a.kind, limit))
	}
	s, err := f.stream(a)
	if err != nil {
		return nil, err
	}
	b := make([]byte, a.size)
	if _, err := s.readAt(f.meta, b, 0); err != nil && err != io.EOF {
		return nil, fmt.Errorf("ntfs record %d: %w", a.where.number, err)
	}
	return b, nil
}

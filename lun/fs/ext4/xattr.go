package ext4

import (
	"errors"
	"fmt"

	"github.com/cleave-san/cleave/lun/fs"
)

const (
	xattrMagic   = 0xEA020000
	xattrHeader  = 32
	indexSystem  = 7
	indexACL     = 2
	indexDefault = 3
)

// prefixes are by e_name_index. Those that getxattr(2) doesn't show are not
// there: "system.data" is inline data, 9 the context of encryption.
var prefixes = map[byte]string{1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.", 6: "security.", 10: "gnu."}

// xattr is an attribute as it is kept.
type xattr struct {
	index byte
	name  string
	inode uint32 // that has the value, 0 if it is here
	size  uint32
	value []byte // nil if an inode has it
}

// Xattrs implements fs.FS.
func (f *FS) Xattrs(r fs.Ref, fn func(name string, value []byte) error) error {
	n, err := f.get(r)
	if err != nil {
		return err
	}
	return f.xattrs(n, func(x xattr) error {
		prefix, ok := prefixes[x.index]
		if !ok {
			return nil
		}
		value := x.value
		if x.inode != 0 {
			if value, err = f.largeValue(x); err != nil {
				return err
			}
		}
		if x.index == indexACL || x.index == indexDefault {
			if value, err = acl(value); err != nil {
				return fmt.Errorf("ext4 inode %d: %w", n.number, err)
			}
		}
		return fn(prefix+x.name, value)
	})
}

// inline is the content of a file with inline data: i_block, then an attribute.
func (f *FS) inline(n *inode) ([]byte, error) {
	b := append([]byte(nil), n.blocks()...)
	found := errors.New("found")
	err := f.xattrs(n, func(x xattr) error {
		if x.index != indexSystem || x.name != "data" {
			return nil
		}
		if x.inode != 0 {
			return damaged(-1, "e_value_inum", x.inode, fmt.Sprintf("inode %d: inline data is not in the inode", n.number))
		}
		b = append(b, x.value...)
		return found
	})
	if err != nil && err != found {
		return nil, err
	}
	if n.kind() == fs.Directory { // whose size is that of i_block and the attribute
		return b, nil
	}
	return b[:min(int64(len(b)), n.size)], nil
}

// holdsXattrs reports whether attributes may be in the inode itself.
func (f *FS) holdsXattrs(n *inode) bool {
	from := 128 + n.extra
	return f.s.inodeSize > 128 && from+4 <= f.s.inodeSize && le.Uint32(n.raw[from:]) == xattrMagic
}

// xattrs calls fn for the attributes in the inode, then those in its block.
func (f *FS) xattrs(n *inode, fn func(xattr) error) error {
	if f.holdsXattrs(n) {
		b := n.raw[128+n.extra+4:]
		if err := f.xattrList(n, b, b, fn); err != nil {
			return err
		}
	}
	if n.acl == 0 {
		return nil
	}
	b, err := f.block(n.acl, "i_file_acl")
	if err != nil {
		return err
	}
	if le.Uint32(b) != xattrMagic || le.Uint32(b[8:]) != 1 {
		return damaged(int64(n.acl)*f.s.blockSize, "h_magic", le.Uint32(b), fmt.Sprintf("the block with attributes of inode %d is none", n.number))
	}
	if f.s.csum() {
		var number [8]byte
		le.PutUint64(number[:], n.acl)
		sum := crc32c(crc32c(crc32c(f.s.seed, number[:]), b[:0x10]), make([]byte, 4))
		if crc32c(sum, b[0x14:]) != le.Uint32(b[0x10:]) {
			return damaged(int64(n.acl)*f.s.blockSize+0x10, "h_checksum", le.Uint32(b[0x10:]), fmt.Sprintf("the block with attributes of inode %d has a wrong checksum", n.number))
		}
	}
	return f.xattrList(n, b[xattrHeader:], b, fn)
}

// xattrList goes through entries. Values are counted from the beginning of base.
func (f *FS) xattrList(n *inode, b, base []byte, fn func(xattr) error) error {
	bad := func(field string, value any) error {
		return damaged(-1, field, value, fmt.Sprintf("inode %d: an attribute does not fit", n.number))
	}
	for len(b) >= 4 && le.Uint32(b) != 0 {
		if len(b) < 16 || len(b) < 16+int(b[0]) {
			return bad("e_name_len", b[0])
		}
		x := xattr{index: b[1], inode: le.Uint32(b[4:]), size: le.Uint32(b[8:]), name: string(b[16 : 16+int(b[0])])}
		if x.inode != 0 && f.s.incompat&incompatEAInode == 0 {
			return bad("e_value_inum", x.inode)
		}
		if x.inode == 0 {
			off := int64(le.Uint16(b[2:]))
			if off+int64(x.size) > int64(len(base)) {
				return bad("e_value_size", x.size)
			}
			x.value = base[off : off+int64(x.size)]
		}
		if err := fn(x); err != nil {
			return err
		}
		b = b[min(len(b), (16+int(b[0])+3)&^3):]
	}
	return nil
}

// largeValue reads a value that has an inode of its own.
func (f *FS) largeValue(x xattr) ([]byte, error) {
	n, err := f.inode(x.inode)
	if err != nil {
		return nil, err
	}
	if !n.has(flagEAInode) || n.kind() != fs.Regular || n.size != int64(x.size) || x.size > fs.MaxXattr {
		return nil, damaged(-1, "e_value_inum", x.inode, "the inode with an attribute's value is not one of that size")
	}
	b := make([]byte, x.size)
	if k, err := (&file{f, n}).ReadAt(b, 0); k < len(b) {
		return nil, err
	}
	return b, nil
}

// acl turns a POSIX ACL as ext4 keeps it (version 1, fs/ext4/acl.h) into what
// getxattr(2) shows (version 2, linux/posix_acl_xattr.h).
func acl(b []byte) ([]byte, error) {
	const user, group = 2, 8
	if len(b) < 4 || le.Uint32(b) != 1 {
		return nil, damaged(-1, "a_version", b[:min(4, len(b))], "is no access control list")
	}
	out := le.AppendUint32(nil, 2)
	for b = b[4:]; len(b) >= 4; {
		tag, id := le.Uint16(b), ^uint32(0)
		out = append(out, b[:4]...)
		b = b[4:]
		if tag == user || tag == group {
			if len(b) < 4 {
				break
			}
			id, b = le.Uint32(b), b[4:]
		}
		out = le.AppendUint32(out, id)
	}
	if len(b) != 0 {
		return nil, damaged(-1, "e_tag", b, "an access control list is cut off")
	}
	return out, nil
}

package xfs

import (
	"fmt"

	"github.com/cleave-san/cleave/lun/fs"
)

// Flags of an attribute.
const (
	attrLocal      = 0x1
	attrRoot       = 0x2
	attrSecure     = 0x4
	attrParent     = 0x8
	attrIncomplete = 0x80
)

// Magics of blocks of an attribute fork, by version; of a value's.
const (
	attrLeaf4  = 0xFBEE
	attrLeaf5  = 0x3BEE
	attrNode4  = 0xFEBE
	attrNode5  = 0x3EBE
	valueMagic = 0x5841524D // "XARM"

	attrLevels = 5       // XFS_DA_NODE_MAXDEPTH
	attrLeaves = 1 << 20 // more are no attributes of one file
)

// Xattrs implements fs.FS.
func (f *FS) Xattrs(r fs.Ref, fn func(name string, value []byte) error) error {
	n, err := f.get(r)
	if err != nil || n.attr.raw == nil {
		return err
	}
	show := func(flags uint8, name string, value []byte) error { return f.show(n, flags, name, value, fn) }
	switch {
	case n.attr.format == formatLocal:
		return f.shortAttrs(n, show)
	case n.attr.format == formatExtents && n.attr.count == 0:
		return nil
	}
	return f.leaves(n, show)
}

// show names an attribute as getxattr(2) does. Access control lists are there
// under both of their names, as they are in listxattr(2).
func (f *FS) show(n *inode, flags uint8, name string, value []byte, fn func(string, []byte) error) error {
	switch {
	case flags&(attrIncomplete|attrParent) != 0:
		return nil
	case name == "":
		return damaged(n.at, "namelen", 0, fmt.Sprintf("inode %d: an attribute has no name", n.number))
	case flags&attrSecure != 0:
		return fn("security."+name, value)
	case flags&attrRoot == 0:
		return fn("user."+name, value)
	}
	lists := map[string]string{"SGI_ACL_FILE": "system.posix_acl_access", "SGI_ACL_DEFAULT": "system.posix_acl_default"}
	if list := lists[name]; list != "" {
		b, err := acl(value)
		if err != nil {
			return fmt.Errorf("xfs inode %d: %w", n.number, err)
		}
		if err := fn(list, b); err != nil {
			return err
		}
	}
	return fn("trusted."+name, value)
}

// shortAttrs lists attributes in an inode (struct xfs_attr_shortform).
func (f *FS) shortAttrs(n *inode, fn func(uint8, string, []byte) error) error {
	b := n.attr.raw
	bad := func(field string, value any) error {
		return damaged(n.at, field, value, fmt.Sprintf("inode %d: an attribute does not fit", n.number))
	}
	if len(b) < 4 || int(be.Uint16(b)) > len(b) || be.Uint16(b) < 4 {
		return bad("totsize", len(b))
	}
	count := int(b[2])
	b = b[4:be.Uint16(b)]
	for range count {
		if len(b) < 3 || len(b) < 3+int(b[0])+int(b[1]) {
			return bad("namelen", len(b))
		}
		name, end := 3+int(b[0]), 3+int(b[0])+int(b[1])
		if err := fn(b[2], string(b[3:name]), b[name:end]); err != nil {
			return err
		}
		b = b[end:]
	}
	return nil
}

// attrBlock reads a block of the attribute fork: a leaf or a node.
func (f *FS) attrBlock(n *inode, block uint32) (b []byte, leaf bool, err error) {
	b, at, _, ok, err := f.readFork(n, &n.attr, uint64(block), f.s.blockSize)
	if err != nil {
		return nil, false, err
	}
	if !ok {
		return nil, false, damaged(n.at, "br_startoff", block, fmt.Sprintf("inode %d: a block with attributes is missing", n.number))
	}
	magic := be.Uint16(b[8:])
	leaf, node := magic == attrLeaf4, magic == attrNode4
	if f.s.v5 {
		leaf, node = magic == attrLeaf5, magic == attrNode5
	}
	if !leaf && !node {
		return nil, false, damaged(at+8, "info.magic", magic, fmt.Sprintf("is no block of attributes of inode %d", n.number))
	}
	if f.s.v5 {
		err = f.verify(b, at, attrFields, n.number)
	}
	return b, leaf, err
}

// leaves goes down to the first leaf and along all of them.
func (f *FS) leaves(n *inode, fn func(uint8, string, []byte) error) error {
	b, leaf, err := f.attrBlock(n, 0)
	head := 16
	if f.s.v5 {
		head = 64
	}
	for depth := 0; err == nil && !leaf; depth++ {
		if depth == attrLevels || be.Uint16(b[head-8+f.nodeShift():]) == 0 {
			return damaged(n.at, "level", depth, fmt.Sprintf("inode %d: the tree of attributes has no leaves", n.number))
		}
		b, leaf, err = f.attrBlock(n, be.Uint32(b[head+4:]))
	}
	seen := make(map[uint32]bool)
	for err == nil {
		if !leaf {
			return damaged(n.at, "info.forw", nil, fmt.Sprintf("inode %d: a leaf of attributes is none", n.number))
		}
		if err := f.leafAttrs(n, b, fn); err != nil {
			return err
		}
		next := be.Uint32(b)
		if next == 0 {
			return nil
		}
		if seen[next] || len(seen) == attrLeaves {
			return damaged(n.at, "info.forw", next, fmt.Sprintf("inode %d: leaves of attributes come again", n.number))
		}
		seen[next] = true
		b, leaf, err = f.attrBlock(n, next)
	}
	return err
}

// nodeShift is where a node's count is within the last eight bytes of its header.
func (f *FS) nodeShift() int {
	if f.s.v5 {
		return 0
	}
	return 4
}

// leafAttrs lists the attributes of a leaf (struct xfs_attr_leafblock).
func (f *FS) leafAttrs(n *inode, b []byte, fn func(uint8, string, []byte) error) error {
	head, count := 32, int(be.Uint16(b[12:]))
	if f.s.v5 {
		head, count = 80, int(be.Uint16(b[56:]))
	}
	bad := func(field string, value any) error {
		return damaged(n.at, field, value, fmt.Sprintf("inode %d: an attribute does not fit its leaf", n.number))
	}
	if count > (len(b)-head)/8 {
		return bad("count", count)
	}
	for i := range count {
		entry := b[head+8*i:]
		at, flags := int(be.Uint16(entry[4:])), entry[6]
		if at+4 > len(b) {
			return bad("nameidx", at)
		}
		x := b[at:]
		if flags&attrIncomplete != 0 {
			continue
		}
		if flags&attrLocal != 0 {
			size, name := int(be.Uint16(x)), 3+int(x[2])
			if name+size > len(x) {
				return bad("valuelen", size)
			}
			if err := fn(flags, string(x[3:name]), x[name:name+size]); err != nil {
				return err
			}
			continue
		}
		if len(x) < 9 || 9+int(x[8]) > len(x) {
			return bad("namelen", len(x))
		}
		value, err := f.remoteValue(n, be.Uint32(x), be.Uint32(x[4:]))
		if err != nil {
			return err
		}
		if err := fn(flags, string(x[9:9+int(x[8])]), value); err != nil {
			return err
		}
	}
	return nil
}

// remoteValue reads a value from blocks of its own: of version 5 each has a header.
func (f *FS) remoteValue(n *inode, block, size uint32) ([]byte, error) {
	if size > fs.MaxXattr {
		return nil, damaged(n.at, "valuelen", size, fmt.Sprintf("inode %d: no attribute has a value of that length", n.number))
	}
	out := make([]byte, 0, size)
	for ; len(out) < int(size); block++ {
		b, at, _, ok, err := f.readFork(n, &n.attr, uint64(block), f.s.blockSize)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, damaged(n.at, "valueblk", block, fmt.Sprintf("inode %d: a block with an attribute's value is missing", n.number))
		}
		if f.s.v5 {
			if err := f.verify(b, at, valFields, n.number); err != nil {
				return nil, err
			}
			bytes := be.Uint32(b[8:])
			if be.Uint32(b) != valueMagic || int(be.Uint32(b[4:])) != len(out) || bytes == 0 || int64(bytes) > int64(len(b)-linkHeader) {
				return nil, damaged(at, "rm_bytes", bytes, fmt.Sprintf("is no part of an attribute of inode %d", n.number))
			}
			b = b[linkHeader : linkHeader+bytes]
		}
		out = append(out, b[:min(len(b), int(size)-len(out))]...)
	}
	return out, nil
}

// acl turns a POSIX ACL as XFS keeps it (struct xfs_acl) into what getxattr(2)
// shows (version 2, linux/posix_acl_xattr.h).
func acl(b []byte) ([]byte, error) {
	const user, group = 2, 8
	if len(b) < 4 || int64(be.Uint32(b)) != int64(len(b)-4)/12 {
		return nil, damaged(-1, "acl_cnt", len(b), "is no access control list")
	}
	out := le.AppendUint32(nil, 2)
	for b = b[4:]; len(b) >= 12; b = b[12:] {
		tag, id := be.Uint32(b), be.Uint32(b[4:])
		if tag != user && tag != group {
			id = ^uint32(0)
		}
		out = le.AppendUint16(out, uint16(tag))
		out = le.AppendUint16(out, be.Uint16(b[8:]))
		out = le.AppendUint32(out, id)
	}
	return out, nil
}

package fuse

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun/fs"
)

// putAttr is fuse_attr.
func (t *tree) putAttr(b []byte, st fs.Stat) {
	le := binary.NativeEndian
	le.PutUint64(b, t.inode(st.Ref))
	le.PutUint64(b[8:], uint64(max(0, st.Size)))
	le.PutUint64(b[16:], uint64(max(0, st.Allocated)+511)/512)
	for i, at := range []time.Time{st.Accessed, st.Modified, st.Changed} {
		if at.IsZero() {
			continue // 1970, as the kernel shows what isn't recorded
		}
		le.PutUint64(b[24+8*i:], uint64(at.Unix()))
		le.PutUint32(b[48+4*i:], uint32(at.Nanosecond()))
	}
	le.PutUint32(b[60:], modeOf(st))
	le.PutUint32(b[64:], st.Links)
	le.PutUint32(b[68:], st.UID)
	le.PutUint32(b[72:], st.GID)
	le.PutUint32(b[76:], st.Minor&0xff|st.Major&0xfff<<8|st.Minor&^0xff<<12) // new_encode_dev
	le.PutUint32(b[80:], 64<<10)                                             // what to read at once, cp thinks
}

var formats = map[fs.Type]uint32{
	fs.Regular: unix.S_IFREG, fs.Directory: unix.S_IFDIR, fs.Symlink: unix.S_IFLNK, fs.CharDevice: unix.S_IFCHR,
	fs.BlockDevice: unix.S_IFBLK, fs.Pipe: unix.S_IFIFO, fs.Socket: unix.S_IFSOCK,
}

func modeOf(st fs.Stat) uint32 { return formats[st.Type] | uint32(st.Mode)&0o7777 }

// inode is st_ino. A file of another subvolume than the root's must not look
// like a hard link to one of the root's: its number has the subvolume's above.
func (t *tree) inode(r fs.Ref) uint64 {
	if r.Tree == t.root.Tree {
		return r.Inode
	}
	return r.Inode ^ r.Tree<<40
}

func (t *tree) statfs(r request, buf []byte) []byte {
	le := binary.NativeEndian
	i := t.f.Info()
	block := max(512, min(i.BlockSize, 1<<20))
	b := answer(buf, r, statfsOut)
	le.PutUint64(b[outHeader:], uint64(max(0, i.Size))/uint64(block))
	le.PutUint32(b[outHeader+40:], uint32(block))
	le.PutUint32(b[outHeader+44:], fs.MaxName)
	le.PutUint32(b[outHeader+48:], uint32(block))
	return b
}

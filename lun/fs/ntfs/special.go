package ntfs

import (
	"fmt"
	"strings"

	"github.com/cleave-san/cleave/lun/fs"
)

// Tags of reparse points: [MS-FSCC] 2.1.2.1.
const (
	tagMount   = 0xA0000003
	tagSymlink = 0xA000000C
	tagLink    = 0xA000001D // of the Windows Subsystem for Linux, as those below
	tagSocket  = 0x80000023
	tagPipe    = 0x80000024
	tagChar    = 0x80000025
	tagBlock   = 0x80000026
)

// tagNames are those of filters without which a file can't be read.
var tagNames = map[uint32]string{0x80000017: "WOF (CompactOS)", 0x80000013: "DEDUP", 0xC0000004: "HSM", 0x80000006: "HSM2", 0x80000008: "WIM"}

// maxReparse bounds a reparse point, in bytes: MAXIMUM_REPARSE_DATA_BUFFER_SIZE.
const maxReparse = 16 << 10

// maxEA bounds all of a file's attributes in the sense of OS/2, in bytes.
const maxEA = 64 << 10

// special is what a file is that is more than its content.
type special struct {
	kind         fs.Type // Unknown: a filter makes the content; tag says which
	tag          uint32
	target       string
	major, minor uint32
}

// special tells what a reparse point, or a file of Interix, is; nil if it is none.
func (f *FS) special(n *inode, flags uint32) (*special, error) {
	a := n.find(typeReparse, "")
	if a == nil || flags&fileReparse == 0 {
		if flags&fileSystem != 0 && !n.dir() {
			return f.interix(n)
		}
		return nil, nil
	}
	b, err := f.value(a, maxReparse)
	if err != nil {
		return nil, err
	}
	bad := func(field string, v any) error {
		return n.damaged(a.off, field, v, "is none of a reparse point")
	}
	if len(b) < 8 || int(le.Uint16(b[4:])) > len(b)-8 {
		return nil, bad("ReparseDataLength", len(b))
	}
	s, data := &special{tag: le.Uint32(b)}, b[8:8+int(le.Uint16(b[4:]))]
	switch s.tag {
	case tagMount, tagSymlink:
		s.kind = fs.Symlink
		header := 8
		if s.tag == tagSymlink {
			header = 12
		}
		var ok bool
		if s.target, ok = windowsTarget(data, header); !ok {
			return nil, bad("PathBuffer", len(data))
		}
	case tagLink:
		if s.kind = fs.Symlink; len(data) <= 4 {
			return nil, bad("Target", len(data))
		}
		s.target = string(data[4:])
	case tagSocket:
		s.kind = fs.Socket
	case tagPipe:
		s.kind = fs.Pipe
	case tagChar, tagBlock:
		if s.kind = fs.CharDevice; s.tag == tagBlock {
			s.kind = fs.BlockDevice
		}
		if s.major, s.minor, err = f.device(n); err != nil {
			return nil, err
		}
	}
	if s.kind == fs.Symlink && strings.ContainsRune(s.target, 0) {
		return nil, bad("PathBuffer", s.target)
	}
	return s, nil
}

// device is the number of one of the Windows Subsystem for Linux, which an extended
// attribute in the sense of OS/2 has: FILE_FULL_EA_INFORMATION.
func (f *FS) device(n *inode) (major, minor uint32, err error) {
	a := n.find(typeEA, "")
	if a == nil {
		return 0, 0, nil
	}
	b, err := f.value(a, maxEA)
	if err != nil {
		return 0, 0, err
	}
	for len(b) >= 8 {
		next, nameLen, valueLen := int(le.Uint32(b)), int(b[5]), int(le.Uint16(b[6:]))
		if value := 8 + nameLen + 1; value+valueLen <= len(b) && string(b[8:8+nameLen]) == "$LXDEV" && valueLen == 8 {
			return le.Uint32(b[value:]), le.Uint32(b[value+4:]), nil
		}
		if next < 8 || next > len(b) {
			break
		}
		b = b[next:]
	}
	return 0, 0, nil
}

// refused is the error of reading a file whose content a filter makes.
func (s *special) refused(n *inode) error {
	name := tagNames[s.tag]
	if name == "" {
		name = fmt.Sprintf("%#x", s.tag)
	}
	return n.damaged(0, "ReparseTag", name, "the file's content is elsewhere or encoded by a filter of Windows, which is not read here")
}

// windowsTarget is a link's path: as it is printed, or else as it is resolved
// without the prefix of NT's own names.
func windowsTarget(b []byte, header int) (string, bool) {
	if len(b) < header {
		return "", false
	}
	path := func(i int) (string, bool) {
		off, n := header+int(le.Uint16(b[i:])), int(le.Uint16(b[i+2:]))
		if off+n > len(b) {
			return "", false
		}
		return name16(b[off : off+n]), true
	}
	target, ok := path(4)
	if ok && target == "" {
		target, ok = path(0)
		target = strings.TrimPrefix(target, `\??\`)
	}
	return strings.ReplaceAll(target, `\`, "/"), ok && target != ""
}

// interix tells what a file of Services for Unix is, as NTFS-3G makes them too.
func (f *FS) interix(n *inode) (*special, error) {
	a := n.find(typeData, "")
	if a == nil || a.size < 9 || a.size > 8+2*4096 || a.flags&(attrEncrypted|attrCompressed) != 0 {
		return nil, nil
	}
	b, err := f.value(a, 8+2*4096)
	if err != nil {
		return nil, err
	}
	switch magic := string(b[:8]); {
	case magic == "IntxLNK\x01":
		if target := name16(b[8:]); target != "" && !strings.ContainsRune(target, 0) {
			return &special{kind: fs.Symlink, target: target}, nil
		}
	case (magic == "IntxCHR\x00" || magic == "IntxBLK\x00") && len(b) >= 24:
		s := &special{kind: fs.CharDevice, major: uint32(le.Uint64(b[8:])), minor: uint32(le.Uint64(b[16:]))}
		if magic[4] == 'B' {
			s.kind = fs.BlockDevice
		}
		return s, nil
	}
	return nil, nil
}

package fs

import (
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"strings"
	"time"
)

// FS is a file system on a device. All methods may be called at once. They are
// of use as long as the device is; an FS holds nothing that must be closed.
//
// A Ref that the FS didn't hand out is ErrNotExist or another file, never worse.
type FS interface {
	// Info describes the file system as a whole.
	Info() Info

	// Root is its topmost directory.
	Root() Ref

	// Stat describes a file. It doesn't read its content.
	Stat(Ref) (Stat, error)

	// Lookup finds a name in a directory: ErrNotExist if it isn't there,
	// ErrNotDir if dir is none. "." and ".." are never there.
	Lookup(dir Ref, name string) (Ref, error)

	// List calls fn for the entries of a directory, in the order of the disk and
	// without "." and "..", and returns fn's first error. It begins after the
	// entry whose Next is after; 0 is the beginning. Entries are handed over as
	// they are read: a directory of any size takes no more memory than an
	// empty one.
	List(dir Ref, after uint64, fn func(Entry) error) error

	// Open opens the content of a regular file, ErrNotFile if it is none. There
	// is nothing to close.
	Open(Ref) (File, error)

	// Readlink returns the target of a symbolic link, at most MaxTarget bytes.
	Readlink(Ref) (string, error)

	// Xattrs calls fn for each extended attribute, and returns fn's first error.
	// Name and value are what getxattr(2) shows to root on Linux ("user.x",
	// "system.posix_acl_access", …). fn must not keep value.
	Xattrs(r Ref, fn func(name string, value []byte) error) error
}

// File is the content of a regular file. All methods may be called at once.
type File interface {
	// ReadAt follows io.ReaderAt: a read that meets the end of the file is short
	// and io.EOF. Large reads are large reads of the device.
	io.ReaderAt

	// Size is the length in bytes.
	Size() int64

	// Extents calls fn for consecutive runs that cover [off, off+n), cut at the
	// end of the file, and returns fn's first error.
	Extents(off, n int64, fn func(Extent) error) error
}

// Ref names a file within its file system, by whatever path it is reached: two
// names of one file have the same Ref. It is comparable, and stable as long as
// the device doesn't change.
type Ref struct {
	// Tree is the subvolume where numbers are unique only within one; else 0.
	Tree uint64
	// Inode is the file's number, as st_ino shows it where there is such a thing.
	Inode uint64
}

func (r Ref) String() string {
	if r.Tree == 0 {
		return fmt.Sprintf("inode %d", r.Inode)
	}
	return fmt.Sprintf("inode %d of tree %d", r.Inode, r.Tree)
}

// Type is what kind of file something is.
type Type uint8

// The types. Unknown is only in an Entry: Stat tells then.
const (
	Unknown Type = iota
	Regular
	Directory
	Symlink
	CharDevice
	BlockDevice
	Pipe
	Socket
)

var typeNames = [...]string{"unknown", "file", "directory", "symlink", "character device", "block device", "pipe", "socket"}

func (t Type) String() string {
	if int(t) < len(typeNames) {
		return typeNames[t]
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// TypeOf is the type in st_mode as Linux has it (S_IFMT), Unknown if none.
func TypeOf(mode uint32) Type {
	switch mode & 0o170000 {
	case 0o100000:
		return Regular
	case 0o040000:
		return Directory
	case 0o120000:
		return Symlink
	case 0o020000:
		return CharDevice
	case 0o060000:
		return BlockDevice
	case 0o010000:
		return Pipe
	case 0o140000:
		return Socket
	}
	return Unknown
}

// Stat describes a file.
type Stat struct {
	Ref  Ref
	Type Type
	// Mode is permissions with set-user-ID, set-group-ID and sticky bit (07777).
	// Where a file system has none it is made up: 0755 and 0644, without write
	// permission where the file is marked as read-only.
	Mode     uint16
	UID, GID uint32
	Links    uint32 // names that the file has
	Size     int64  // bytes; of a symbolic link, the length of its target
	// Allocated is the space that it takes on the device, in bytes.
	Allocated int64
	// Major and Minor are of a device.
	Major, Minor uint32
	// NoXattrs says that Xattrs has nothing to tell, where Stat sees that at no
	// cost. False means nothing.
	NoXattrs bool
	// Times are zero where they aren't recorded.
	Modified, Changed, Accessed, Born time.Time
}

// Entry is a name in a directory.
type Entry struct {
	Name string // never empty, ".", "..", longer than MaxName; without "/" and NUL
	Ref  Ref
	Type Type
	// Next is where List goes on after this entry. It is never 0.
	Next uint64
}

// Kind says what a run of a file is.
type Kind uint8

// Kinds of extents.
const (
	// Data lies on the device as it is.
	Data Kind = iota
	// Hole has no place and reads as zeroes.
	Hole
	// Unwritten has a place, was never written, and reads as zeroes.
	Unwritten
	// Encoded has bytes that can't be pointed at: they are kept in an inode,
	// compressed, or lie otherwise than they read.
	Encoded
)

func (k Kind) String() string {
	if names := [...]string{"data", "hole", "unwritten", "encoded"}; int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Extent is a run of a file that is alike.
type Extent struct {
	Off, Len int64 // bytes in the file
	Kind     Kind
	// Device is where Data and Unwritten begin on the device that the FS was
	// opened on, in bytes: of data that only a journal holds, the place
	// in the journal.
	Device int64
	// Shared says that these bytes of the device are not this file's alone: a
	// log holds them, or other files have them too. They must not be written to.
	Shared bool
}

// Info describes a file system.
type Info struct {
	Kind      string // "ext4", "xfs", …: as in FormatError.Format
	Variant   string // in its own words where the kind has several: "ext2", "v5"
	Label     string
	UUID      string
	Size      int64 // bytes of the device that it takes
	BlockSize int
	// Replayed says what was taken from the log of a file system that had not
	// been unmounted; "" if nothing.
	Replayed string
	// Warnings are about what is read all the same.
	Warnings []error
}

// Bounds that every reader keeps. What is beyond them is damage.
const (
	MaxName   = 1024     // bytes of a name; 255 UTF-16 units are at most 765
	MaxTarget = 32 << 10 // bytes of a symbolic link's target
	MaxXattr  = 64 << 10 // bytes of an attribute's value (XATTR_SIZE_MAX)
	MaxDepth  = 512      // directories within each other that Walk enters
)

// Errors of a reader, wrapped with the file that they are about. They are
// compared with errors.Is.
var (
	ErrNotExist = iofs.ErrNotExist
	ErrNotDir   = errors.New("not a directory")
	ErrNotFile  = errors.New("not a regular file")
	ErrNotLink  = errors.New("not a symbolic link")

	// ErrDirty says that the file system's log holds changes that are not in
	// their places yet and that the reader doesn't replay.
	ErrDirty = errors.New("not unmounted cleanly, and its log is not replayed here")

	// ErrEncrypted says that the file is encrypted by the file system.
	ErrEncrypted = errors.New("encrypted by the file system")

	// ErrTooDeep says that directories are nested deeper than MaxDepth, or that
	// one contains itself.
	ErrTooDeep = errors.New("directories are nested too deeply")
)

// GoodName reports whether a name that was read from a disk may be an Entry's.
func GoodName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= MaxName && !strings.ContainsAny(name, "/\x00")
}

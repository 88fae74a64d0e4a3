package ntfs

import (
	"fmt"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/fs/cached"
)

// cacheSize bounds the metadata that is kept, in bytes.
const cacheSize = 16 << 20

// Records that every volume has.
const (
	recordMFT    = 0
	recordLog    = 2
	recordVolume = 3
	recordRoot   = 5
	recordUpcase = 10
	// firstUser is the first that isn't NTFS's own.
	firstUser = 16
)

// FS is an NTFS file system.
type FS struct {
	b      *boot
	dev    lun.Device
	meta   *cached.Reader
	mft    *stream
	upcase []uint16
	info   fs.Info
}

var _ fs.FS = (*FS)(nil)

// Open opens the file system that dev holds from its first byte on. The error is
// lun.ErrNotFormat where there is none, fs.ErrDirty where its log is not clean,
// and a *lun.FormatError where it is damaged or uses what isn't read.
func Open(dev lun.Device) (*FS, error) {
	if dev.Size() < bootSize {
		return nil, lun.ErrNotFormat
	}
	f := &FS{dev: dev, meta: cached.New(dev, dev.Size(), cacheSize)}
	b := make([]byte, bootSize)
	if _, err := f.meta.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("ntfs boot sector: %w", err)
	}
	var err error
	if f.b, err = parseBoot(b, dev.Size()); err != nil {
		return nil, err
	}
	for _, step := range []struct {
		what string
		do   func() error
	}{{"$MFT", f.openMFT}, {"$Volume", f.readVolume}, {"$LogFile", f.checkLog}, {"$UpCase", f.readUpcase}, {"root", f.checkRoot}} {
		if err := step.do(); err != nil {
			return nil, own(step.what, err)
		}
	}
	return f, nil
}

// own is an error in what every volume has: there it is damage that something isn't there.
func own(what string, err error) error {
	if isNotExist(err) {
		return damaged(-1, what, nil, fmt.Sprintf("is missing: %v", err))
	}
	return fmt.Errorf("ntfs %s: %w", what, err)
}

// openMFT reads where the records lie. The records that say so for the rest of them
// lie in what is known by then.
func (f *FS) openMFT() error {
	r := &record{recordMFT, f.b.mft * f.b.cluster, make([]byte, f.b.record)}
	if _, err := f.meta.ReadAt(r.b, r.at); err != nil {
		return err
	}
	if err := r.check(); err != nil {
		return err
	}
	err := r.attributes(func(b []byte, off int) error {
		if le.Uint32(b) != typeData || f.mft != nil {
			return nil
		}
		a, p, err := r.parseAttr(b, off)
		if err != nil || p == nil || a.name != "" {
			return err
		}
		f.mft = &stream{f: f, a: a}
		return f.mft.add(*p)
	})
	if err != nil {
		return err
	}
	if f.mft == nil {
		return r.damaged(0, "$DATA", nil, "the MFT has no clusters")
	}
	n, err := f.assemble(r)
	if err != nil {
		return err
	}
	a := n.find(typeData, "")
	if a == nil || a.resident() {
		return r.damaged(0, "$DATA", nil, "the MFT has no clusters")
	}
	for _, p := range a.parts[1:] {
		if err := f.mft.add(p); err != nil {
			return err
		}
	}
	return nil
}

// volumeDirty is the flag that chkdsk is asked for.
const volumeDirty = 0x1

func (f *FS) readVolume() error {
	n, err := f.inode(recordVolume)
	if err != nil {
		return err
	}
	a := n.find(typeVolume, "")
	if a == nil || len(a.value) < 12 {
		return n.damaged(0, "VOLUME_INFORMATION", nil, "is missing")
	}
	major, minor, flags := a.value[8], a.value[9], le.Uint16(a.value[10:])
	if major != 3 && (major != 1 || minor != 2) {
		return n.damaged(a.off, "MajorVersion", fmt.Sprintf("%d.%d", major, minor), "only versions 1.2, 3.0 and 3.1 are read")
	}
	f.info = fs.Info{Kind: "ntfs", Variant: fmt.Sprintf("%d.%d", major, minor), UUID: fmt.Sprintf("%016X", f.b.serial),
		Size: f.b.size, BlockSize: int(f.b.cluster)}
	if l := n.find(typeLabel, ""); l != nil && len(l.value) <= 256 {
		f.info.Label = name16(l.value)
	}
	if flags&volumeDirty != 0 {
		f.info.Warnings = append(f.info.Warnings, fmt.Errorf("ntfs: the volume is marked as dirty: Windows wants chkdsk to check it"))
	}
	return nil
}

// readUpcase reads the table of upper case that names are ordered by.
func (f *FS) readUpcase() error {
	n, err := f.inode(recordUpcase)
	if err != nil {
		return err
	}
	a := n.find(typeData, "")
	if a == nil {
		return n.damaged(0, "$DATA", nil, "is missing")
	}
	b, err := f.value(a, 2<<16)
	f.upcase = units(b)
	return err
}

func (f *FS) checkRoot() error {
	n, err := f.inode(recordRoot)
	if err == nil && !n.dir() {
		err = n.damaged(22, "Flags", le.Uint16(n.b[22:]), "the root is not a directory")
	}
	return err
}

// Info implements fs.FS.
func (f *FS) Info() fs.Info { return f.info }

// Root implements fs.FS.
func (f *FS) Root() fs.Ref { return fs.Ref{Inode: recordRoot} }

// get reads the file that a Ref names.
func (f *FS) get(r fs.Ref) (*inode, error) {
	if r.Tree != 0 {
		return nil, fmt.Errorf("ntfs %v: %w", r, fs.ErrNotExist)
	}
	return f.inode(r.Inode)
}

package ext4

import (
	"errors"
	"fmt"
	"io"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/fs/cached"
	"github.com/cleave-san/cleave/lun/fs/jbd2"
)

// cacheSize bounds the metadata that is kept, in bytes.
const cacheSize = 16 << 20

const rootInode = 2

// FS is an ext2, ext3 or ext4 file system.
type FS struct {
	s    *super
	dev  lun.Device // with the journal replayed
	view *jbd2.View // dev, if there was one to replay
	meta io.ReaderAt
	info fs.Info
}

var _ fs.FS = (*FS)(nil)

// Open opens the file system that dev holds from its first byte on. The error is
// lun.ErrNotFormat where there is none, and a *lun.FormatError where it is
// damaged or uses what isn't read.
func Open(dev lun.Device) (*FS, error) {
	f, err := open(dev)
	if err != nil {
		return nil, err
	}
	if f.s.incompat&incompatRecover != 0 {
		if f, err = f.replay(); err != nil {
			return nil, err
		}
	}
	root, err := f.inode(rootInode)
	if err != nil {
		return nil, err
	}
	if root.kind() != fs.Directory {
		return nil, damaged(-1, "i_mode", root.mode, "the root is not a directory")
	}
	return f, nil
}

// open takes dev as it is.
func open(dev lun.Device) (*FS, error) {
	if dev.Size() < superOffset+superSize {
		return nil, lun.ErrNotFormat
	}
	b := make([]byte, superSize)
	if _, err := dev.ReadAt(b, superOffset); err != nil {
		return nil, fmt.Errorf("ext4 superblock: %w", err)
	}
	s, err := parseSuper(b, dev.Size())
	if err != nil {
		return nil, err
	}
	f := &FS{s: s, dev: dev, meta: cached.New(dev, dev.Size(), cacheSize)}
	f.info = fs.Info{Kind: "ext4", Variant: s.variant(), Label: s.label, UUID: s.uuid, Size: int64(s.blocks) * s.blockSize, BlockSize: int(s.blockSize)}
	return f, nil
}

// replay returns the file system as it is once its journal is in its places.
func (f *FS) replay() (*FS, error) {
	if f.s.compat&compatHasJournal == 0 {
		return nil, damaged(superOffset+0x60, "s_feature_incompat", "needs_recovery", "there is no journal to recover from")
	}
	if f.s.journalDevice {
		return nil, fmt.Errorf("ext4: the journal is on another device: %w", fs.ErrDirty)
	}
	n, err := f.inode(f.s.journal)
	if err == nil && n.kind() != fs.Regular {
		err = damaged(-1, "i_mode", n.mode, "is not a regular file")
	}
	if err != nil {
		return nil, fmt.Errorf("ext4: journal: %w", err)
	}
	j := &file{f: f, n: n}
	log, err := jbd2.Read(j, n.size, f.s.blockSize, f.s.blocks)
	if err != nil {
		return nil, fmt.Errorf("ext4: %w", err)
	}
	view, err := log.View(f.dev, func(block uint32) (int64, error) {
		r, err := f.run(n, uint64(block))
		if err == nil && r.kind != fs.Data {
			err = damaged(-1, "journal", block, "the journal has a hole")
		}
		return int64(r.at+uint64(block)-r.from) * f.s.blockSize, err
	})
	if err != nil {
		return nil, err
	}
	out, err := open(view)
	if errors.Is(err, lun.ErrNotFormat) {
		err = damaged(superOffset+0x38, "s_magic", nil, "the journal holds a superblock that is none")
	}
	if err != nil {
		return nil, err
	}
	if out.s.blockSize != f.s.blockSize {
		return nil, damaged(superOffset+0x18, "s_log_block_size", out.s.blockSize, "is another one in the journal")
	}
	view.Patch(jbd2.Patch{Off: superOffset, Data: out.s.recovered()})
	out.view = view
	if !log.Empty() {
		out.info.Replayed = fmt.Sprintf("journal: %d transactions with %d blocks", log.Transactions, log.Blocks)
	}
	return out, nil
}

// Device is the device with the journal replayed: what a mount would leave but
// for the orphans. It is read-only.
func (f *FS) Device() lun.Device { return f.dev }

// Info implements fs.FS.
func (f *FS) Info() fs.Info { return f.info }

// Root implements fs.FS.
func (f *FS) Root() fs.Ref { return fs.Ref{Inode: rootInode} }

// block reads a block of metadata.
func (f *FS) block(n uint64, what string) ([]byte, error) {
	if n == 0 || n >= f.s.blocks {
		return nil, damaged(-1, what, n, "is not a block of the file system")
	}
	b := make([]byte, f.s.blockSize)
	if _, err := f.meta.ReadAt(b, int64(n)*f.s.blockSize); err != nil {
		return nil, fmt.Errorf("ext4 block %d: %w", n, err)
	}
	return b, nil
}

package xfs

import (
	"fmt"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
)

// Types of items: XFS_LI_….
const (
	itemExtentsFree     = 0x1236
	itemExtentsFreed    = 0x1237
	itemUnlinked        = 0x1238
	itemInode           = 0x123b
	itemBuffer          = 0x123c
	itemDquot           = 0x123d
	itemQuotaOff        = 0x123e
	itemInodesCreated   = 0x123f
	itemRmapUpdate      = 0x1240
	itemRmapUpdated     = 0x1241
	itemRefcountUpdate  = 0x1242
	itemRefcountUpdated = 0x1243
	itemMapUpdate       = 0x1244
	itemMapUpdated      = 0x1245
	itemAttrUpdate      = 0x1246
	itemAttrUpdated     = 0x1247
	itemExchange        = 0x1248
	itemExchanged       = 0x1249
)

// unfinished are intents that change what a file holds when they are carried out, by
// the type of the item that says that they were. The kernel carries out those that are
// left; here they are refused. Other intents are about free space, and who owns
// or shares it, which is not read.
var unfinished = map[uint16]struct {
	intent uint16
	what   string
}{
	itemMapUpdated:  {itemMapUpdate, "a change of where a file's data lies"},
	itemAttrUpdated: {itemAttrUpdate, "a change of a file's attributes"},
	itemExchanged:   {itemExchange, "an exchange of two files' data"},
}

type intent struct {
	kind uint16
	id   uint64
}

// replay is the recovery of a log into a view.
type replay struct {
	f         *FS
	v         *view
	cancelled map[[2]int64]int // places of buffers that were given up: how often yet
	intents   map[intent]bool
	count     int // transactions
}

// recovered returns the file system as it is once its log was recovered, which the
// device is not changed for. What the kernel does after that with inodes that have
// no name any more, and with space, is not done, for it is not seen.
func (f *FS) recovered() (*FS, error) {
	if !f.s.v5 {
		return nil, dirty("version 4")
	}
	at, ok := f.s.byteOf(f.s.logStart, f.s.logBlocks)
	if !ok {
		return nil, damaged(48, "sb_logstart", f.s.logStart, "the log is not within the file system")
	}
	l := &logReader{f, at, int64(f.s.logBlocks) * f.s.blockSize / logBlock}
	r := &replay{f: f, v: &view{dev: f.dev, size: int64(f.s.blocks) * f.s.blockSize, pages: map[int64][]byte{}}}
	// Twice: buffers that are given up later are known before any is replayed.
	var ts *transactions
	var tail lsn
	var last logRecord
	err := l.walk(func() {
		r.cancelled = map[[2]int64]int{}
		ts, tail = &transactions{open: map[uint32]*transaction{}, commit: r.cancels}, 0
	}, func(rec logRecord) error {
		if tail == 0 {
			tail = rec.lsn
		}
		last = rec
		last.data = nil
		return ts.add(rec)
	})
	if err != nil {
		return nil, err
	}
	r.intents = map[intent]bool{}
	ts = &transactions{open: map[uint32]*transaction{}, commit: r.apply}
	if _, err := l.each(tail, last, ts.add); err != nil {
		return nil, err
	}
	for i := range r.intents {
		for _, u := range unfinished {
			if u.intent == i.kind {
				return nil, dirty(u.what + " was not finished")
			}
		}
	}
	out, err := openSuper(r.v, r.v, f.unsummed)
	if err != nil {
		return nil, err
	}
	if out.s.blockSize != f.s.blockSize || out.s.inodeSize != f.s.inodeSize || out.s.agBlocks != f.s.agBlocks {
		return nil, damaged(4, "sb_blocksize", out.s.blockSize, "is another one in the log")
	}
	if r.count > 0 {
		out.replayed = fmt.Sprintf("log: %d transactions", r.count)
	}
	return out, nil
}

// cancels is the first pass: it counts buffers that are given up.
func (r *replay) cancels(t *transaction) error {
	for _, i := range t.items {
		if i.kind() != itemBuffer {
			continue
		}
		b, err := parseBuffer(i)
		if err != nil {
			return err
		}
		if b.flags&bufferCancel != 0 {
			r.cancelled[b.place()]++
		}
		if len(r.cancelled) > maxView/viewPage {
			return fmt.Errorf("%d buffers are given up", len(r.cancelled))
		}
	}
	return nil
}

// apply is the second pass. Buffers come first and those given up last, whatever
// their order: xlog_recover_reorder_trans().
func (r *replay) apply(t *transaction) error {
	r.count++
	for _, i := range t.items {
		if len(i.regions) != i.total {
			return fmt.Errorf("an item of type %#x has %d regions of %d", i.kind(), len(i.regions), i.total)
		}
		var err error
		switch i.kind() {
		case itemBuffer:
			err = r.buffer(t, i, false)
		case itemInodesCreated:
			err = r.inodesCreated(i)
		}
		if err != nil {
			return err
		}
	}
	for _, i := range t.items {
		if err := r.other(t, i); err != nil {
			return err
		}
	}
	for _, i := range t.items {
		if i.kind() == itemBuffer {
			if err := r.buffer(t, i, true); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *replay) other(t *transaction, i *item) error {
	switch kind := i.kind(); kind {
	case itemInode:
		return r.inode(t, i)
	case itemMapUpdate, itemAttrUpdate, itemExchange, itemMapUpdated, itemAttrUpdated, itemExchanged:
		if len(i.regions[0]) < 16 {
			return fmt.Errorf("an intent has %d bytes", len(i.regions[0]))
		}
		id := intent{kind, le.Uint64(i.regions[0][8:])}
		if done, ok := unfinished[kind]; ok {
			delete(r.intents, intent{done.intent, id.id})
			return nil
		}
		if r.intents[id] = true; len(r.intents) > maxRegions {
			return dirty("thousands of changes were not finished")
		}
	case itemBuffer, itemInodesCreated: // done
	case itemExtentsFree, itemExtentsFreed, itemUnlinked, itemDquot, itemQuotaOff,
		itemRmapUpdate, itemRmapUpdated, itemRefcountUpdate, itemRefcountUpdated:
	default:
		if kind < itemExtentsFree || kind > itemExtentsFree+0x40 {
			return fmt.Errorf("an item has the type %#x", kind)
		}
		return fmt.Errorf("xfs: items of type %#x in the log are not known here: %w", kind, fs.ErrDirty)
	}
	return nil
}

// at is where n basic blocks from number block on lie.
func (r *replay) at(block, n int64) (int64, error) {
	if block < 0 || n <= 0 || block > r.v.size/logBlock || lun.CheckRange(block*logBlock, n*logBlock, r.v.size) != nil {
		return 0, fmt.Errorf("basic blocks %d+%d are not within the file system", block, n)
	}
	return block * logBlock, nil
}

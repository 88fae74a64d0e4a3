package xfs

import (
	"fmt"
)

// Flags of an operation: oh_flags of struct xlog_op_header.
const (
	opStart     = 0x01
	opCommit    = 0x02
	opContinue  = 0x04 // more of it comes in another record
	opContinued = 0x08 // this is more of one
	opEnd       = 0x10

	opHeader          = 12
	clientTransaction = 0x69
	clientLog         = 0xaa

	transMagic  = 0x5452414e // th_magic
	transHeader = 16         // struct xfs_trans_header
)

const (
	maxRegions = 4 << 10 // of an item
	// maxOpen bounds what transactions that are not committed yet may hold, in bytes:
	// a checkpoint is a fraction of the log.
	maxOpen = 512 << 20
)

// item is something that a transaction changes: regions, of which the first says
// what it is and how many there are.
type item struct {
	total   int
	regions [][]byte
}

func (i *item) kind() uint16 { return le.Uint16(i.regions[0]) }

// transaction is one that is being put together.
type transaction struct {
	lsn    lsn
	header int // bytes of it that are there
	items  []*item
}

// transactions puts transactions together from the operations of records.
type transactions struct {
	open   map[uint32]*transaction
	held   int
	commit func(*transaction) error
}

// add goes through a record.
func (t *transactions) add(r logRecord) error {
	data := r.data
	bad := func(why string, args ...any) error {
		return damaged(-1, "xlog_op_header", r.at, fmt.Sprintf("of the record at that block of the log: "+why, args...))
	}
	for n := r.ops; n > 0 && len(data) > 0; n-- {
		if len(data) < opHeader {
			return bad("is not whole")
		}
		tid, length, client, flags := be.Uint32(data), int(be.Uint32(data[4:])), data[8], data[9]
		data = data[opHeader:]
		switch {
		case client != clientTransaction && client != clientLog:
			return bad("oh_clientid is %#x", client)
		case length > len(data):
			return bad("oh_len is %d of %d", length, len(data))
		}
		region := data[:length]
		data = data[length:]
		one := t.open[tid]
		if one == nil {
			// Anything else belongs to one that began before what is needed.
			if flags&opStart != 0 {
				if len(t.open) >= maxRegions {
					return bad("%d transactions are under way at once", len(t.open))
				}
				t.open[tid] = &transaction{lsn: r.lsn}
			}
			continue
		}
		flags &^= opEnd
		if flags&opContinued != 0 {
			flags &^= opContinue
		}
		var err error
		switch flags {
		case 0, opContinue:
			err = t.region(one, region)
		case opContinued:
			err = t.more(one, region)
		case opCommit:
			delete(t.open, tid)
			t.held = 0
			for _, o := range t.open {
				t.held += o.size()
			}
			err = t.commit(one)
		default:
			err = fmt.Errorf("oh_flags is %#x", flags)
		}
		if err != nil {
			return bad("%w", err)
		}
		if t.held > maxOpen {
			return bad("transactions hold more than %d MiB", maxOpen>>20)
		}
	}
	return nil
}

func (one *transaction) size() (n int) {
	for _, i := range one.items {
		for _, r := range i.regions {
			n += len(r)
		}
	}
	return n
}

// region takes a region: the header of the transaction, the first of an item, or
// a further one: xlog_recover_add_to_trans().
func (t *transactions) region(one *transaction, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if one.header == 0 && len(one.items) == 0 {
		if len(b) < 4 || len(b) > transHeader || le.Uint32(b) != transMagic {
			return fmt.Errorf("a transaction does not begin with its header")
		}
		one.header = len(b)
		return nil
	}
	var last *item
	if n := len(one.items); n > 0 {
		last = one.items[n-1]
	}
	if last == nil || len(last.regions) == last.total {
		if len(b) < 4 {
			return fmt.Errorf("an item begins with %d bytes", len(b))
		}
		last = &item{total: int(le.Uint16(b[2:]))}
		if last.total == 0 || last.total > maxRegions {
			return fmt.Errorf("an item of type %#x has %d regions", le.Uint16(b), last.total)
		}
		one.items = append(one.items, last)
	}
	last.regions = append(last.regions, append([]byte(nil), b...))
	t.held += len(b)
	return nil
}

// more takes what is missing of the region before: xlog_recover_add_to_cont_trans().
func (t *transactions) more(one *transaction, b []byte) error {
	if len(one.items) == 0 {
		if one.header += len(b); one.header > transHeader {
			return fmt.Errorf("the header of a transaction has %d bytes", one.header)
		}
		return nil
	}
	last := one.items[len(one.items)-1]
	k := len(last.regions) - 1
	last.regions[k] = append(last.regions[k], b...)
	t.held += len(b)
	return nil
}

package recovery

import (
	"context"
	"fmt"
	"sync"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/store/lvm2"
)

// A recovery in place reads and writes in batches, some of them at once.
const (
	batchBytes = 1 << 20
	batchSpans = 512
	copiers    = 4
)

// Run writes. On error, the context's included, it may be run again, after a
// restart by way of PrepareInPlace; see InPlace. progress gets the bytes of
// volumes that were written, out of Bytes.
func (p *InPlace) Run(ctx context.Context, progress Progress) error {
	if p.Done {
		return ctx.Err()
	}
	if p.staged != nil {
		return p.runStaged(ctx, progress)
	}
	p.written = 0
	if err := p.change(ctx, p.mark); err != nil {
		return fmt.Errorf("mark the snapshots as merging: %w", err)
	}
	for i, m := range p.disks {
		if len(m.redirects) == 0 {
			continue
		}
		if err := p.putBack(ctx, m, progress); err != nil {
			return fmt.Errorf("disk %d: %w", i+1, err)
		}
	}
	for i, m := range p.disks {
		if len(m.redirects) == 0 {
			continue
		}
		if err := m.base.Sync(); err != nil {
			return fmt.Errorf("disk %d: %w", i+1, err)
		}
	}
	if err := p.change(ctx, p.commit); err != nil {
		return fmt.Errorf("remove the snapshots: %w", err)
	}
	return nil
}

// change commits metadata: all texts, and when they are stable, all headers.
func (p *InPlace) change(ctx context.Context, changes []lvm2.Change) error {
	var texts, headers []lvm2.Patch
	for _, c := range changes {
		texts, headers = append(texts, c.Texts...), append(headers, c.Headers...)
	}
	for _, patches := range [][]lvm2.Patch{texts, headers} {
		if err := ctx.Err(); err != nil {
			return err
		}
		touched := make(map[lun.Device]bool)
		for _, q := range patches {
			if err := writeBlocks(q.PV.Dev, q.Data, q.Off); err != nil {
				return fmt.Errorf("metadata of %d bytes at byte %d: %w", len(q.Data), q.Off, err)
			}
			touched[q.PV.Dev] = true
		}
		for d := range touched {
			if err := d.Sync(); err != nil {
				return fmt.Errorf("metadata: %w", err)
			}
		}
	}
	return nil
}

// span is a run of a device to be written.
type span struct{ off, n int64 }

// putBack writes what reads from the snapshots on m over its base. Batches are
// in order, several at once.
func (p *InPlace) putBack(ctx context.Context, m *merged, progress Progress) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	batches := make(chan []span, copiers)
	var wg sync.WaitGroup
	var mu sync.Mutex // serialises progress
	n := copiers
	if p.ragged {
		n = 1 // two spans may share a block
	}
	for range n {
		wg.Go(func() {
			buf := make([]byte, batchBytes)
			for b := range batches {
				n, err := copyBatch(m, b, buf)
				if err != nil {
					cancel(err)
					return
				}
				mu.Lock()
				p.written += n
				if progress != nil {
					progress(p.written)
				}
				mu.Unlock()
			}
		})
	}
	err := m.batches(func(b []span) error {
		select {
		case batches <- b:
			return ctx.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	close(batches)
	wg.Wait()
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return err
}

// batches calls fn for what has to be written, in pieces of at most batchBytes
// and batchSpans.
func (m *merged) batches(fn func([]span) error) error {
	var b []span
	room := int64(batchBytes)
	send := func() error {
		out := b
		b, room = nil, batchBytes
		if len(out) == 0 {
			return nil
		}
		return fn(out)
	}
	err := m.preserved(func(off, n int64) error {
		for n > 0 {
			piece := min(n, room)
			if k := len(b) - 1; k >= 0 && b[k].off+b[k].n == off {
				b[k].n += piece
			} else {
				b = append(b, span{off, piece})
			}
			off, n, room = off+piece, n-piece, room-piece
			if room == 0 || len(b) == batchSpans {
				if err := send(); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return send()
}

func copyBatch(m *merged, b []span, buf []byte) (n int64, err error) {
	for _, s := range b {
		piece := buf[:s.n]
		if _, err := m.ReadAt(piece, s.off); err != nil {
			return n, fmt.Errorf("read what was preserved of byte %d: %w", s.off, err)
		}
		if err := writeBlocks(m.base, piece, s.off); err != nil {
			return n, fmt.Errorf("write %d bytes at byte %d: %w", s.n, s.off, err)
		}
		n += s.n
	}
	return n, nil
}

// writeBlocks writes whole logical blocks: LVM counts in sectors of 512 bytes
// also on disks that have larger ones.
func writeBlocks(d lun.Device, p []byte, off int64) error {
	block := int64(512)
	if b, ok := d.(lun.Blocker); ok {
		logical, _ := b.Blocks()
		block = int64(logical)
	}
	from, to := off&^(block-1), (off+int64(len(p))+block-1)&^(block-1)
	if from != off || to != off+int64(len(p)) {
		whole := make([]byte, to-from)
		if _, err := d.ReadAt(whole, from); err != nil {
			return err
		}
		copy(whole[off-from:], p)
		p, off = whole, from
	}
	_, err := d.WriteAt(p, off)
	return err
}

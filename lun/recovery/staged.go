package recovery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/redo"
)

// ErrJournal says that a recovery in place needs a redo journal, or another one than
// it got. Compared with errors.Is.
var ErrJournal = errors.New("a redo journal is needed, in a file outside of the disks")

// staged is a recovery in place that goes by way of a redo journal.
type staged struct {
	file    redo.File
	journal *redo.Journal // nil: there is none yet
	guards  []guard
}

// guard is the sector of a volume that tells whether it is half written.
type guard struct {
	disk int
	off  int64
}

// note is what a redo journal says besides, so that a run that goes on has the same
// answers as the one that began.
type note struct {
	Disks     []string    `json:"disks"` // their names
	Volumes   []Recovered `json:"volumes"`
	Discarded []string    `json:"discarded,omitempty"`
}

func (p *InPlace) names() (out []string) {
	for _, d := range p.sources {
		out = append(out, d.Name)
	}
	return out
}

// devices are the disks, that take writes of single sectors whatever their blocks.
func (p *InPlace) devices() (out []lun.Device) {
	for _, d := range p.sources {
		out = append(out, blockwise{d.Device})
	}
	return out
}

type blockwise struct{ lun.Device }

func (d blockwise) WriteAt(b []byte, off int64) (int, error) {
	if err := writeBlocks(d.Device, b, off); err != nil {
		return 0, err
	}
	return len(b), nil
}

// resume looks at what a journal's file holds. No plan and no error: there is
// nothing to go on with, and the file may get a new journal.
func resume(ctx context.Context, c *open.Contents, f redo.File) (*InPlace, error) {
	fail := func(err error) (*InPlace, error) { return nil, fmt.Errorf("recover in place: %w", err) }
	j, err := redo.Open(ctx, f)
	if errors.Is(err, redo.ErrNone) {
		return nil, nil
	} else if err != nil {
		return fail(err)
	}
	other := func(why string) (*InPlace, error) {
		return fail(fmt.Errorf("redo journal %s is not of these disks as they are: %s: %w, or remove this one where nothing waits for it", j.ID, why, ErrJournal))
	}
	var n note
	if err := json.Unmarshal(j.Note, &n); err != nil {
		return other("its note makes no sense")
	}
	p := &InPlace{sources: c.Disks, Volumes: n.Volumes, Discarded: n.Discarded, bytes: j.Bytes, lists: make([]rewritten, len(c.Disks)), staged: &staged{file: f, journal: j}}
	devices := p.devices()
	if !j.Fits(devices) {
		return other("it has other numbers of them, or sizes")
	}
	if p.Resumed, err = j.Begun(devices); err != nil {
		return fail(err)
	}
	if !p.Resumed {
		if p.Done, err = j.Applied(ctx, devices); err != nil {
			return fail(err)
		}
	}
	switch {
	case p.Resumed || p.Done:
	case j.Unbegun() && slices.Equal(n.Disks, p.names()):
		return nil, nil // nothing was written: it is staged anew
	default:
		return other("they have no mark of it, nor what it would write")
	}
	return p, j.Extents(ctx, func(i int, off, n int64) { p.lists[i].add(off, n) })
}

// stage plans to put volumes back to the snapshots that they keep inside themselves.
func (p *InPlace) stage(ctx context.Context, picks []chosen, o InPlaceOptions) error {
	p.staged = &staged{file: o.Journal}
	kept := make(keptEdits)
	for _, c := range picks {
		r, err := kept.show(c, p.disks)
		if err != nil {
			return err
		}
		if len(r.Discarded) > 0 && !o.DiscardOthers {
			return fmt.Errorf("recover %s to %s in place: it has other snapshots (%d, all in one store): %w", c.volume(), c.name(), len(r.Discarded), ErrDiscards)
		}
		if r.Mode, r.Staged = Overwrite, true; c.kept.Subvolume != nil {
			r.Mode = Rename
			if err := kept[c.kept.Keeper].Forget(c.kept.Subvolume); err != nil {
				return err
			}
		}
		p.Volumes, p.Discarded = append(p.Volumes, r), append(p.Discarded, r.Discarded...)
		if g := (guard{c.kept.Keeper.Disk, c.kept.Keeper.Guard()}); !slices.Contains(p.staged.guards, g) {
			p.staged.guards = append(p.staged.guards, g)
		}
	}
	if o.Journal == nil {
		return fmt.Errorf("recover %s to %s in place: the snapshot lies in the volume that is written over: %w", picks[0].volume(), picks[0].name(), ErrJournal)
	}
	if err := kept.patch(p.disks); err != nil {
		return err
	}
	for _, m := range p.disks {
		m.seal()
		if err := m.apart(); err != nil {
			return err
		}
	}
	ask := make([]asker, len(p.disks))
	err := p.pieces(ctx, func(i int, off, n int64, _ bool) error {
		ask[i].disk = p.sources[i]
		p.bytes += n
		p.lists[i].add(off, n)
		return ask[i].add(off, n)
	})
	for i := range ask {
		if err == nil && ask[i].disk != nil {
			err = ask[i].flush()
		}
	}
	if err != nil {
		return fmt.Errorf("recover in place: %w", err)
	}
	return nil
}

// pieces calls fn for all that is written, guards first and on their own, in pieces
// that a journal takes. Where a shadow copy knows nothing of a block but that it was
// free, that is left as it is.
func (p *InPlace) pieces(ctx context.Context, fn func(disk int, off, n int64, guard bool) error) error {
	for _, g := range p.staged.guards {
		if err := fn(g.disk, g.off, redo.Sector, true); err != nil {
			return err
		}
	}
	for i, m := range p.disks {
		var from, n int64
		send := func() (err error) {
			if n > 0 {
				err = fn(i, from, n, false)
			}
			n = 0
			return err
		}
		for off := int64(0); off < m.Size(); {
			if err := ctx.Err(); err != nil {
				return err
			}
			write, run, err := p.staged.writes(i, m, off)
			if err != nil {
				return err
			}
			if from+n != off || !write {
				if err := send(); err != nil {
					return err
				}
			}
			if n == 0 {
				from = off
			}
			if write {
				run = min(run, redo.MaxPiece-n)
				if n += run; n == redo.MaxPiece {
					if err := send(); err != nil {
						return err
					}
				}
			}
			off += run
		}
		if err := send(); err != nil {
			return err
		}
	}
	return nil
}

// writes says whether byte off of a disk is written, and for how many bytes that
// holds. Guards are not: they are written by themselves.
func (s *staged) writes(disk int, m *merged, off int64) (write bool, run int64, err error) {
	src, _, run := m.locate(off)
	patched, n := m.patched(off)
	run = min(run, n)
	for _, g := range s.guards {
		switch {
		case g.disk != disk || g.off+redo.Sector <= off:
		case g.off > off:
			run = min(run, g.off-off)
		default:
			return false, min(run, g.off+redo.Sector-off), nil
		}
	}
	if f, ok := src.(failing); ok {
		return false, 0, f.err
	}
	_, free := src.(zeroes)
	return patched || src != nil && !free, run, nil
}

// runStaged makes the journal, if there is none, and writes what it holds.
func (p *InPlace) runStaged(ctx context.Context, progress Progress) error {
	s := p.staged
	if s.journal == nil {
		if err := p.journal(ctx); err != nil {
			return fmt.Errorf("nothing was written to the disks: %w", err)
		}
	}
	return s.journal.Apply(ctx, p.devices(), progress)
}

// journal stages everything.
func (p *InPlace) journal(ctx context.Context) error {
	b, err := json.Marshal(note{p.names(), p.Volumes, p.Discarded})
	if err != nil {
		return err
	}
	var sizes []int64
	for _, d := range p.sources {
		sizes = append(sizes, d.Device.Size())
	}
	w, err := redo.Create(p.staged.file, sizes, b)
	if err != nil {
		return err
	}
	buf := make([]byte, redo.MaxPiece)
	err = p.pieces(ctx, func(i int, off, n int64, guard bool) error {
		if _, err := p.disks[i].ReadAt(buf[:n], off); err != nil {
			return fmt.Errorf("read what was preserved of byte %d: %w", off, err)
		}
		if guard {
			return w.Guard(i, off, buf[:n])
		}
		return w.Add(i, off, buf[:n])
	})
	if err != nil {
		return err
	}
	if err := w.Seal(); err != nil {
		return err
	}
	p.staged.journal, err = redo.Open(ctx, p.staged.file)
	return err
}

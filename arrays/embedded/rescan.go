package embedded

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/disk"
	"github.com/cleave-san/cleave/lun"
)

// RescanReport says what a rescan found.
type RescanReport struct {
	Array     lun.Identity     `json:"array"`
	Volumes   []RescanVolume   `json:"volumes"`
	Snapshots []RescanSnapshot `json:"snapshots"`
	// LeftOver are raw files that belong to nothing; they stay as they are.
	LeftOver []string `json:"leftOver,omitempty"`
	// Notes are lines for the operator: what is missing, what was passed over.
	Notes []string `json:"notes,omitempty"`
	// Written says that the catalogue was made.
	Written bool `json:"written"`
}

// RescanVolume is a volume that was found.
type RescanVolume struct {
	ID      lun.Identity   `json:"id"`
	Name    string         `json:"name"`
	Size    int64          `json:"size"` // bytes
	Mirrors []RescanMirror `json:"mirrors"`
}

// RescanMirror is a mirror of it. The first that is in sync is the one that the
// others are made equal to.
type RescanMirror struct {
	ID    lun.Identity `json:"id"`
	Pool  string       `json:"pool"`
	State string       `json:"state"` // "in-sync", "filling", "broken"
}

// RescanSnapshot is a split that was found.
type RescanSnapshot struct {
	ID     lun.Identity `json:"id"`
	Tag    driver.Tag   `json:"tag"`
	Volume string       `json:"volume"` // name
	Pool   string       `json:"pool"`
}

// staleAfter is by how much the file of a mirror must be older than another's
// for the other to be taken as the newer content, though both are said to be in
// sync. It is far more than what lies between the writes to two mirrors.
const staleAfter = time.Minute

// Rescan makes the catalogue of an array anew from what lies in its pools, when
// the state directory is lost. It is refused where there is a catalogue: that
// is the authority, and one that is damaged is moved away by whoever has looked
// at it. No array may be open on the pools. With dryRun nothing is changed.
//
// Volumes come back with the mirrors that the newest label tells to be in sync;
// the intent logs are gone, so that Open compares all of these mirrors and
// makes them equal, from the one that the report names first, while the volume
// is in use. Splits come back by tag and identity, one that was not certain as
// a mirror of its volume; the bitmaps are gone, so that a resync copies all.
// Consents and who sees which LUN are lost.
//
// After an error or a crash there is a catalogue that is whole, or none.
func Rescan(ctx context.Context, o Options, dryRun bool) (rep RescanReport, err error) {
	if o.StateDir == "" || len(o.Pools) == 0 {
		return rep, driver.Errorf(driver.InvalidRequest, "rescan: a state directory and at least one pool are needed")
	}
	if o.FS == nil {
		o.FS = disk.OS()
	}
	s := &scan{o: o, fs: o.FS, claims: map[lun.Identity]claim{}, files: map[lun.Identity]foundFile{}, newest: map[lun.Identity]*label{}}
	defer func() {
		for _, l := range s.locks {
			l.Close()
		}
		if err != nil {
			err = fmt.Errorf("rescan into %s: %w", o.StateDir, err)
		}
	}()
	path := filepath.Join(o.StateDir, "catalogue.json")
	if _, err := s.fs.Stat(path); err == nil {
		return rep, driver.Errorf(driver.InvalidRequest, "there is a catalogue: start the array with it; if it is damaged, move %s away first", path)
	} else if !isNotExist(err) {
		return rep, err
	}
	if !dryRun {
		if err := disk.MkdirAll(s.fs, filepath.Join(o.StateDir, "maps")); err != nil {
			return rep, err
		}
		if err := s.lock(filepath.Join(o.StateDir, lockFile)); err != nil {
			return rep, err
		}
	}
	cat, err := s.scan(ctx)
	if err != nil {
		return rep, err
	}
	if err := cat.check(); err != nil {
		return rep, fmt.Errorf("labels contradict each other: %w", err)
	}
	rep = s.report(cat)
	if dryRun {
		return rep, nil
	}
	b, err := encodeRecord(catalogKind, catalogVersion, cat)
	if err == nil {
		err = disk.Replace(s.fs, path, b)
	}
	rep.Written = err == nil
	return rep, err
}

// scan collects what the labels say.
type scan struct {
	o     Options
	fs    disk.FS
	locks []io.Closer
	notes []string

	array  lun.Identity
	pools  map[string]lun.Identity
	files  map[lun.Identity]foundFile // by mirror
	raws   map[string]bool            // all raw files; those that belong to something are taken out
	claims map[lun.Identity]claim     // by mirror: what it was last said to be
	newest map[lun.Identity]*label    // by volume: the newest of its mirrors' labels
	seq    uint64
}

// foundFile is a raw file with a label.
type foundFile struct {
	label    label
	pool     string
	file     string // below the pool
	modified time.Time
}

// claim is what the label with the highest Seq says of a mirror.
type claim struct {
	seq      uint64
	own      bool // it is the mirror's own label
	volume   lun.Identity
	mirror   mirrorRecord
	snapshot *snapshotRecord
}

func (s *scan) lock(path string) error {
	l, err := s.fs.Lock(path)
	if errors.Is(err, disk.ErrLocked) {
		return driver.Errorf(driver.Busy, "an array is open on it: %w", err)
	} else if err != nil {
		return err
	}
	s.locks = append(s.locks, l)
	return nil
}

func (s *scan) note(format string, args ...any) {
	s.notes = append(s.notes, fmt.Sprintf(format, args...))
}

func (s *scan) scan(ctx context.Context) (*catalog, error) {
	s.pools, s.raws = map[string]lun.Identity{}, map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(s.o.Pools)) {
		if err := s.openPool(name, s.o.Pools[name]); err != nil {
			return nil, fmt.Errorf("pool %q: %w", name, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.pools)) {
		if err := s.scanPool(ctx, name); err != nil {
			return nil, fmt.Errorf("pool %q: %w", name, err)
		}
	}
	for _, f := range s.files {
		s.hear(&f.label)
	}
	return s.catalogue(), nil
}

// openPool makes sure that the pool is one of the array's, and nobody's else.
func (s *scan) openPool(name, dir string) error {
	if !volumeName.MatchString(name) {
		return driver.Errorf(driver.InvalidRequest, "its name: want 1 to 63 of [a-z0-9._-]")
	}
	b, err := disk.ReadFile(s.fs, filepath.Join(dir, poolFile), maxLabel)
	if err != nil {
		return err
	}
	var rec poolRecord
	if _, err := decodeRecord(b, poolKind, poolVersion, &rec); err != nil {
		return fmt.Errorf("%s: %w", poolFile, err)
	}
	if rec.Name != name {
		return driver.Errorf(driver.InvalidRequest, "%s is pool %q: labels name it so; give it that name", dir, rec.Name)
	}
	if s.array.IsZero() {
		s.array = rec.Array
	} else if rec.Array != s.array {
		return driver.Errorf(driver.InvalidRequest, "it belongs to array %s, the others to %s", rec.Array, s.array)
	}
	s.pools[name] = rec.Pool
	return s.lock(filepath.Join(dir, lockFile))
}

// scanPool reads the labels in a pool.
func (s *scan) scanPool(ctx context.Context, name string) error {
	root := s.o.Pools[name]
	dirs, err := s.fs.ReadDir(root)
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if fi, err := s.fs.Stat(filepath.Join(root, d)); err != nil || !fi.IsDir() {
			continue
		}
		names, err := s.fs.ReadDir(filepath.Join(root, d))
		if err != nil {
			s.note("%v: what is in it was passed over", err)
			continue
		}
		for _, n := range names {
			if strings.HasSuffix(n, ".raw") {
				s.raws[filepath.Join(root, d, n)] = true
				s.readLabel(name, filepath.Join(d, n))
			}
		}
	}
	return nil
}

// readLabel reads the label of a raw file.
func (s *scan) readLabel(pool, file string) {
	raw := filepath.Join(s.o.Pools[pool], file)
	pass := func(err error) { s.note("%s was passed over: %v", raw, err) }
	b, err := disk.ReadFile(s.fs, labelPath(raw), maxLabel)
	if err != nil {
		pass(err)
		return
	}
	f := foundFile{pool: pool, file: file}
	if _, err := decodeRecord(b, labelKind, labelVersion, &f.label); err != nil {
		pass(err)
		return
	}
	fi, err := s.fs.Stat(raw)
	l := &f.label
	switch {
	case err != nil:
		pass(err)
	case l.Array != s.array:
		pass(fmt.Errorf("it is of array %s", l.Array))
	case !volumeName.MatchString(l.Name) || checkSize(l.Size) != nil:
		pass(fmt.Errorf("its label has the impossible name %.80q or size %d", l.Name, l.Size))
	case l.Mirror.Pool != pool || l.Mirror.File != file:
		pass(fmt.Errorf("its label is of %s in pool %q", l.Mirror.File, l.Mirror.Pool))
	case fi.Size() < l.Size:
		pass(fmt.Errorf("it is %d bytes long and should be %d: it was truncated", fi.Size(), l.Size))
	default:
		f.modified = fi.ModTime()
		s.files[l.Mirror.ID] = f
		s.seq = max(s.seq, l.Seq)
	}
}

// hear takes note of all that a label says. What a label says was so in the
// catalogue of its Seq; of two that speak of one mirror the later is right, and
// of two of one Seq the mirror's own.
func (s *scan) hear(l *label) {
	say := func(id lun.Identity, c claim) {
		have, ok := s.claims[id]
		if c.seq = l.Seq; !ok || c.seq > have.seq || c.seq == have.seq && c.own && !have.own {
			s.claims[id] = c
		}
	}
	say(l.Mirror.ID, claim{own: true, volume: l.Volume, mirror: l.Mirror, snapshot: l.Snapshot})
	if l.Snapshot == nil {
		if n := s.newest[l.Volume]; n == nil || l.Seq > n.Seq {
			s.newest[l.Volume] = l
		}
		for _, m := range l.Mirrors {
			if m.ID != l.Mirror.ID {
				say(m.ID, claim{volume: l.Volume, mirror: m})
			}
		}
		return
	}
	for _, g := range l.Group {
		if g.Mirror == l.Mirror.ID {
			continue
		}
		r := *l.Snapshot
		r.ID, r.Volume, r.Epoch, r.Skewed = g.Snapshot, g.Volume, g.Epoch, false
		if f, ok := s.files[g.Mirror]; ok {
			r.VolumeName, r.Size = f.label.Name, f.label.Size
			r.Mirror = mirrorRecord{ID: g.Mirror, Pool: f.pool, File: f.file, State: inSync}
			say(g.Mirror, claim{volume: g.Volume, mirror: r.Mirror, snapshot: &r})
		}
	}
}

// catalogue is what the claims come to.
func (s *scan) catalogue() *catalog {
	c := &catalog{Array: s.array, Seq: s.seq + 1, Pools: s.pools}
	for _, id := range slices.SortedFunc(maps.Keys(s.claims), byID) {
		k := s.claims[id]
		f, ok := s.files[id]
		if k.snapshot == nil {
			continue
		}
		if !ok {
			s.note("split %s of tag %q of volume %q: its file is in no pool", k.snapshot.ID, k.snapshot.Tag, k.snapshot.VolumeName)
			continue
		}
		r := *k.snapshot
		r.Mirror = mirrorRecord{ID: id, Pool: f.pool, File: f.file, State: inSync}
		c.Snapshots = append(c.Snapshots, r)
		delete(s.raws, filepath.Join(s.o.Pools[f.pool], f.file))
	}
	slices.SortFunc(c.Snapshots, func(x, y snapshotRecord) int { return cmp.Or(x.At.Compare(y.At), byID(x.ID, y.ID)) })
	labels := slices.Collect(maps.Values(s.newest))
	slices.SortFunc(labels, func(x, y *label) int { return cmp.Or(cmp.Compare(y.Seq, x.Seq), byID(x.Volume, y.Volume)) })
	names := map[string]bool{}
	for _, l := range labels {
		if names[l.Name] {
			s.note("volume %q, %s, was passed over: a newer one has its name", l.Name, l.Volume)
			continue
		}
		if v, ok := s.volume(l, c.Snapshots); ok {
			names[l.Name] = true
			c.Volumes = append(c.Volumes, v)
		}
	}
	slices.SortFunc(c.Volumes, func(x, y volumeRecord) int { return cmp.Compare(x.Name, y.Name) })
	return c
}

func byID(x, y lun.Identity) int { return slices.Compare(x[:], y[:]) }

// volume is what becomes of a volume whose newest label is l. It is none if no
// mirror of it can be trusted.
func (s *scan) volume(l *label, snaps []snapshotRecord) (volumeRecord, bool) {
	v := volumeRecord{ID: l.Volume, Name: l.Name, Size: l.Size, Created: l.Created, Want: l.Want, NextEpoch: 1, Policy: l.Policy}
	members := slices.Clone(l.Mirrors)
	if l.Seq == 0 { // version 1: each label speaks for itself
		members = nil
		for _, id := range slices.SortedFunc(maps.Keys(s.claims), byID) {
			if k := s.claims[id]; k.volume == l.Volume && k.snapshot == nil {
				members = append(members, k.mirror)
			}
		}
	}
	trusted := false
	for _, m := range members {
		k := s.claims[m.ID]
		if k.snapshot != nil || k.volume != l.Volume {
			continue
		}
		m := k.mirror
		if f, ok := s.files[m.ID]; ok {
			delete(s.raws, filepath.Join(s.o.Pools[f.pool], f.file))
		} else if _, known := s.pools[m.Pool]; !known {
			s.note("volume %q: mirror %s is in pool %q, which was not given", v.Name, m.ID, m.Pool)
			continue
		} else {
			s.note("volume %q: mirror %s is not in pool %q", v.Name, m.ID, m.Pool)
			m.State, m.Reason = broken, "its file was not found by the rescan"
		}
		switch m.State {
		case inSync:
			trusted = true
		case filling:
			m.All, m.Todo = false, []string{todoName(m.ID)} // which is gone: everything is copied
		case broken:
			m.All, m.Todo, m.Length = true, nil, 0 // what it missed is not known any more
		}
		v.Mirrors = append(v.Mirrors, m)
	}
	if !trusted {
		s.note("volume %q, %s, was passed over: no mirror of it that was found is known to be in sync", v.Name, v.ID)
		return v, false
	}
	s.preferNewest(&v)
	for _, r := range snaps {
		if r.Volume == v.ID && !slices.Contains(v.Epochs, r.Epoch) {
			v.Epochs = append(v.Epochs, r.Epoch)
			v.NextEpoch = max(v.NextEpoch, r.Epoch+1)
		}
	}
	slices.Sort(v.Epochs)
	v.noteUnmirrored(time.Now())
	return v, true
}

// preferNewest puts a mirror first that was still written to when the one that
// is first no longer was.
func (s *scan) preferNewest(v *volumeRecord) {
	first := -1
	for i, m := range v.Mirrors {
		if m.State != inSync {
			continue
		}
		if first < 0 || s.files[m.ID].modified.Sub(s.files[v.Mirrors[first].ID].modified) > staleAfter {
			first = i
		}
	}
	m := v.Mirrors[first]
	v.Mirrors = slices.Insert(slices.Delete(v.Mirrors, first, first+1), 0, m)
}

func (s *scan) report(c *catalog) RescanReport {
	rep := RescanReport{Array: c.Array, Volumes: []RescanVolume{}, Snapshots: []RescanSnapshot{}, Notes: s.notes}
	for _, v := range c.Volumes {
		x := RescanVolume{ID: v.ID, Name: v.Name, Size: v.Size}
		for _, m := range v.Mirrors {
			x.Mirrors = append(x.Mirrors, RescanMirror{ID: m.ID, Pool: m.Pool, State: string(m.State)})
		}
		rep.Volumes = append(rep.Volumes, x)
	}
	for _, r := range c.Snapshots {
		rep.Snapshots = append(rep.Snapshots, RescanSnapshot{ID: r.ID, Tag: r.Tag, Volume: r.VolumeName, Pool: r.Mirror.Pool})
	}
	rep.LeftOver = slices.Sorted(maps.Keys(s.raws))
	return rep
}

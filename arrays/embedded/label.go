package embedded

import (
	"bytes"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/disk"
	"github.com/cleave-san/cleave/lun"
)

const (
	labelKind    = "label"
	labelVersion = 1
)

// label lies beside a raw file and says what it is. Labels follow the catalogue
// by some moments; where they differ, the catalogue is right.
type label struct {
	Array    lun.Identity    `json:"array"`
	Volume   lun.Identity    `json:"volume"`
	Name     string          `json:"name"`
	Size     int64           `json:"size"`
	Created  time.Time       `json:"created,omitzero"`
	Want     []string        `json:"want,omitempty"`
	Policy   SnapshotPolicy  `json:"policy,omitempty"`
	Mirror   mirrorRecord    `json:"mirror"`
	Snapshot *snapshotRecord `json:"snapshot,omitempty"`
	// Siblings are the volume's mirrors in sync, so that a stale label is
	// known by its fellows.
	Siblings []lun.Identity `json:"siblings,omitempty"`
}

func labelPath(file string) string { return strings.TrimSuffix(file, ".raw") + ".json" }

// labeller writes labels in the background.
type labeller struct {
	a       *Array
	wake    chan struct{}
	quit    chan struct{}
	once    sync.Once
	written map[string][]byte // by path
}

func (l *labeller) init(a *Array) {
	l.a, l.wake, l.quit = a, make(chan struct{}, 1), make(chan struct{})
	l.written = map[string][]byte{}
}

// kick says that the catalogue has changed.
func (l *labeller) kick() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// stop has run write the last state and return.
func (l *labeller) stop() { l.once.Do(func() { close(l.quit) }) }

func (l *labeller) run() {
	for {
		select {
		case <-l.wake:
			l.write()
		case <-l.quit:
			l.write()
			return
		}
	}
}

func (l *labeller) write() {
	cat := l.a.store.read()
	seen := map[string]bool{}
	put := func(m mirrorRecord, lb label) {
		path := labelPath(l.a.poolPath(m.Pool, m.File))
		seen[path] = true
		if p := l.a.pools[m.Pool]; p == nil || p.down() != nil {
			return
		}
		b, err := encodeRecord(labelKind, labelVersion, lb)
		if err != nil || bytes.Equal(l.written[path], b) {
			return
		}
		if l.written[path] == nil { // not since we started: it may be right already
			if old, err := disk.ReadFile(l.a.fs, path, 1<<20); err == nil && bytes.Equal(old, b) {
				l.written[path] = b
				l.a.scrap(path + disk.NewSuffix) // which a crash may have left
				return
			}
		}
		if err := l.replace(m.ID, path, b); err != nil {
			l.a.o.Logger.Warn("a mirror's label was not written", "file", path, "error", err)
			return
		}
		l.written[path] = b
	}
	for _, v := range cat.Volumes {
		lb := label{Array: cat.Array, Volume: v.ID, Name: v.Name, Size: v.Size, Created: v.Created, Want: v.Want, Policy: v.Policy}
		for _, m := range v.Mirrors {
			if m.State == inSync {
				lb.Siblings = append(lb.Siblings, m.ID)
			}
		}
		for _, m := range v.Mirrors {
			lb.Mirror = m
			put(m, lb)
		}
	}
	for _, s := range cat.Snapshots {
		put(s.Mirror, label{
			Array: cat.Array, Volume: s.Volume, Name: s.VolumeName, Size: s.Size,
			Mirror: s.Mirror, Snapshot: &s,
		})
	}
	for path := range l.written {
		if !seen[path] {
			delete(l.written, path)
		}
	}
}

// replace writes a label, unless its mirror is gone: then its files are too, or
// will be as soon as the directories are let go.
func (l *labeller) replace(mirror lun.Identity, path string, b []byte) error {
	l.a.dirs.Lock()
	defer l.a.dirs.Unlock()
	if !l.a.store.read().hasMirror(mirror) {
		return nil
	}
	return disk.Replace(l.a.fs, path, b)
}

// hasMirror reports whether the mirror is a volume's or a snapshot's.
func (c *catalog) hasMirror(id lun.Identity) bool {
	for i := range c.Volumes {
		if c.Volumes[i].mirror(id) != nil {
			return true
		}
	}
	return slices.ContainsFunc(c.Snapshots, func(s snapshotRecord) bool { return s.Mirror.ID == id })
}

// change updates the catalogue and has labels follow.
func (a *Array) change(fn func(*catalog) error) error {
	if err := a.store.update(fn); err != nil {
		return err
	}
	a.labels.kick()
	return nil
}

var _ driver.Driver = (*Array)(nil)

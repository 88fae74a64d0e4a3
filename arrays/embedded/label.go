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
	labelVersion = 2
)

// label lies beside a raw file and says what it is. Labels follow the catalogue
// by some moments; where they differ, the catalogue is right. When it is lost,
// the label with the highest Seq that speaks of a mirror is right.
type label struct {
	Array lun.Identity `json:"array"`
	// Seq is of the catalogue that the label was written from; 0 in version 1.
	Seq      uint64          `json:"seq,omitempty"`
	Volume   lun.Identity    `json:"volume"`
	Name     string          `json:"name"`
	Size     int64           `json:"size"`
	Created  time.Time       `json:"created,omitzero"`
	Want     []string        `json:"want,omitempty"`
	Mirror   mirrorRecord    `json:"mirror"`
	Snapshot *snapshotRecord `json:"snapshot,omitempty"`
	// Siblings are the volume's mirrors in sync, so that a stale label is
	// known by its fellows; Mirrors are all of them, since version 2.
	Siblings []lun.Identity `json:"siblings,omitempty"`
	Mirrors  []mirrorRecord `json:"mirrors,omitempty"`
	Policy   SnapshotPolicy `json:"policy,omitempty"`
	// Group are the snapshots that were made at the same instant, since version
	// 2: one label of a group is enough to find it whole.
	Group []groupMember `json:"group,omitempty"`
}

// groupMember is a snapshot of a group.
type groupMember struct {
	Snapshot lun.Identity `json:"snapshot"`
	Volume   lun.Identity `json:"volume"`
	Mirror   lun.Identity `json:"mirror"`
	Epoch    uint64       `json:"epoch"`
}

func labelPath(file string) string { return strings.TrimSuffix(file, ".raw") + ".json" }

// labeller writes labels in the background.
type labeller struct {
	a    *Array
	wake chan struct{}
	quit chan struct{}
	once sync.Once

	mu      sync.Mutex
	written map[string][]byte // by path; as they would be with Seq 0
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
	l.mu.Lock()
	defer l.mu.Unlock()
	cat := l.a.store.read()
	seen := map[string]bool{}
	put := func(lb label) {
		seen[l.path(&lb)] = true
		l.put(cat, lb)
	}
	// Snapshots first: a mirror that its volume does not know any more must be
	// known as what it is now.
	for _, lb := range cat.snapshotLabels() {
		put(lb)
	}
	for i := range cat.Volumes {
		for _, lb := range cat.Volumes[i].labels() {
			put(lb)
		}
	}
	for path := range l.written {
		if !seen[path] {
			delete(l.written, path)
		}
	}
}

// writeVolume writes the labels of one volume and its snapshots, now: for those
// who are about to write to a file what its label does not allow for.
func (l *labeller) writeVolume(id lun.Identity) {
	l.mu.Lock()
	defer l.mu.Unlock()
	cat := l.a.store.read()
	for _, lb := range cat.snapshotLabels() {
		if lb.Volume == id {
			l.put(cat, lb)
		}
	}
	if v := cat.volume(id); v != nil {
		for _, lb := range v.labels() {
			l.put(cat, lb)
		}
	}
}

// snapshotLabels are those of all snapshots.
func (c *catalog) snapshotLabels() []label {
	groups := map[string][]groupMember{}
	for _, s := range c.Snapshots {
		groups[s.Group] = append(groups[s.Group], groupMember{s.ID, s.Volume, s.Mirror.ID, s.Epoch})
	}
	out := make([]label, len(c.Snapshots))
	for i := range c.Snapshots {
		s := &c.Snapshots[i]
		out[i] = label{
			Volume: s.Volume, Name: s.VolumeName, Size: s.Size,
			Mirror: s.Mirror, Snapshot: s, Group: groups[s.Group],
		}
	}
	return out
}

// labels are those of the volume's mirrors.
func (v *volumeRecord) labels() []label {
	out := make([]label, len(v.Mirrors))
	var siblings []lun.Identity
	for _, m := range v.Mirrors {
		if m.State == inSync {
			siblings = append(siblings, m.ID)
		}
	}
	for i, m := range v.Mirrors {
		out[i] = label{
			Volume: v.ID, Name: v.Name, Size: v.Size, Created: v.Created, Want: v.Want,
			Mirror: m, Siblings: siblings, Mirrors: v.Mirrors, Policy: v.Policy,
		}
	}
	return out
}

func (l *labeller) path(lb *label) string {
	return labelPath(l.a.poolPath(lb.Mirror.Pool, lb.Mirror.File))
}

// put writes a label of a catalogue, unless it is there already. l.mu is held.
func (l *labeller) put(cat *catalog, lb label) {
	path := l.path(&lb)
	if p := l.a.pools[lb.Mirror.Pool]; p == nil || p.down() != nil {
		return
	}
	lb.Array, lb.Seq = cat.Array, 0
	content, err := encodeRecord(labelKind, labelVersion, lb)
	if err != nil || bytes.Equal(l.written[path], content) {
		return
	}
	if l.written[path] == nil && l.onDisk(path, content) {
		l.written[path] = content
		l.a.scrap(path + disk.NewSuffix) // which a crash may have left
		return
	}
	lb.Seq = cat.Seq
	b, err := encodeRecord(labelKind, labelVersion, lb)
	if err == nil {
		err = l.replace(lb.Mirror.ID, path, b)
	}
	if err != nil {
		l.a.o.Logger.Warn("a mirror's label was not written", "file", path, "error", err)
		return
	}
	l.written[path] = content
}

// onDisk reports whether the label was right when we started.
func (l *labeller) onDisk(path string, content []byte) bool {
	b, err := disk.ReadFile(l.a.fs, path, maxLabel)
	if err != nil {
		return false
	}
	var old label
	if v, err := decodeRecord(b, labelKind, labelVersion, &old); err != nil || v != labelVersion {
		return false
	}
	old.Seq = 0
	b, err = encodeRecord(labelKind, labelVersion, old)
	return err == nil && bytes.Equal(b, content)
}

// maxLabel bounds what is read of a label: one of a group of 4,096.
const maxLabel = 1 << 20

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

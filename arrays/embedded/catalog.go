package embedded

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

const (
	catalogKind    = "catalogue"
	catalogVersion = 2
)

// catalog is all that the array knows, as one record that is replaced in one
// step: whatever a change says about several volumes becomes true at once.
type catalog struct {
	Array     lun.Identity            `json:"array"`
	Seq       uint64                  `json:"seq"` // of changes
	Pools     map[string]lun.Identity `json:"pools"`
	Volumes   []volumeRecord          `json:"volumes,omitempty"`
	Snapshots []snapshotRecord        `json:"snapshots,omitempty"`
	// Pending splits have begun and are not certain: at start they are undone.
	Pending []pendingRecord `json:"pending,omitempty"`
	// Consents to leave volumes unmirrored, by tag.
	Consents []consentRecord `json:"consents,omitempty"`
	// Trash are files that belong to nothing: about to be made, or about to be
	// removed. At start they are removed.
	Trash []fileRef `json:"trash,omitempty"`
}

// fileRef names a file: in the pool, or in the state directory if Pool is
// empty.
type fileRef struct {
	Pool string `json:"pool,omitempty"`
	Path string `json:"path"`
}

type volumeRecord struct {
	ID      lun.Identity   `json:"id"`
	Name    string         `json:"name"`
	Size    int64          `json:"size"`
	Created time.Time      `json:"created"`
	Want    []string       `json:"want"` // pools, one for each mirror it should have
	Mirrors []mirrorRecord `json:"mirrors"`
	// Epochs with a bitmap of what was written in them, oldest first; the last
	// is the current one. Empty while nobody wants to know.
	Epochs     []uint64  `json:"epochs,omitempty"`
	NextEpoch  uint64    `json:"nextEpoch"`
	Unmirrored time.Time `json:"unmirrored,omitzero"`
	// Policy says what splits are made of.
	Policy SnapshotPolicy `json:"policy,omitempty"`
}

// mirrorState is what a mirror is to its volume.
type mirrorState string

const (
	inSync  mirrorState = "in-sync"
	filling mirrorState = "filling" // written to, and being copied to
	broken  mirrorState = "broken"  // not used
)

type mirrorRecord struct {
	ID    lun.Identity `json:"id"`
	Pool  string       `json:"pool"`
	File  string       `json:"file"` // below the pool
	State mirrorState  `json:"state"`
	// Todo are the map files whose union is what it lacks, while it is filling
	// or broken; All: everything.
	Todo   []string `json:"todo,omitempty"`
	All    bool     `json:"all,omitempty"`
	Reason string   `json:"reason,omitempty"`
	// FileID tells its file from another of the same name; empty if unknown.
	// While it is broken: Away, if the file was not there; and how long that
	// was, in bytes.
	FileID string `json:"fileId,omitempty"`
	Away   bool   `json:"away,omitempty"`
	Length int64  `json:"length,omitempty"`
	// From is the snapshot that it last was, so that a repeated Resync is
	// known for what it is.
	From lun.Identity `json:"from,omitzero"`
}

type snapshotRecord struct {
	ID         lun.Identity  `json:"id"`
	Tag        driver.Tag    `json:"tag"`
	Group      string        `json:"group"`
	Volume     lun.Identity  `json:"volume"`
	VolumeName string        `json:"volumeName"`
	Size       int64         `json:"size"`
	Mirror     mirrorRecord  `json:"mirror"`
	Epoch      uint64        `json:"epoch"` // the volume's first after the split
	At         time.Time     `json:"at"`
	Held       time.Duration `json:"held"`
	Skewed     bool          `json:"skewed,omitempty"`
	// For is the snapshot that a revert or reversal used up when it made this
	// one of what the volume held, so that a repeated call is known.
	For lun.Identity `json:"for,omitzero"`
	// Clone says that Mirror was never the volume's: its file was made as a
	// clone of a mirror's, and has no place to go back to.
	Clone bool `json:"clone,omitempty"`
}

type pendingRecord struct {
	Tag     driver.Tag      `json:"tag"`
	Group   string          `json:"group"`
	Members []pendingMember `json:"members"`
}

type pendingMember struct {
	Volume   lun.Identity `json:"volume"`
	Mirror   lun.Identity `json:"mirror"`
	Snapshot lun.Identity `json:"snapshot"`
	Epoch    uint64       `json:"epoch"`
	// Clone says that Mirror is only cloned. The clone's file is in the trash
	// until the split is certain.
	Clone bool `json:"clone,omitempty"`
}

type consentRecord struct {
	Tag     driver.Tag     `json:"tag"`
	Volumes []lun.Identity `json:"volumes"`
	At      time.Time      `json:"at"`
}

func (c *catalog) clone() *catalog {
	n := *c
	n.Pools = make(map[string]lun.Identity, len(c.Pools))
	for k, v := range c.Pools {
		n.Pools[k] = v
	}
	n.Volumes = slices.Clone(c.Volumes)
	for i := range n.Volumes {
		v := &n.Volumes[i]
		v.Want, v.Mirrors, v.Epochs = slices.Clone(v.Want), slices.Clone(v.Mirrors), slices.Clone(v.Epochs)
		for j := range v.Mirrors {
			v.Mirrors[j].Todo = slices.Clone(v.Mirrors[j].Todo)
		}
	}
	n.Snapshots = slices.Clone(c.Snapshots)
	n.Pending = slices.Clone(c.Pending)
	n.Consents = slices.Clone(c.Consents)
	n.Trash = slices.Clone(c.Trash)
	return &n
}

func (c *catalog) volume(id lun.Identity) *volumeRecord {
	for i := range c.Volumes {
		if c.Volumes[i].ID == id {
			return &c.Volumes[i]
		}
	}
	return nil
}

func (c *catalog) snapshot(id lun.Identity) *snapshotRecord {
	for i := range c.Snapshots {
		if c.Snapshots[i].ID == id {
			return &c.Snapshots[i]
		}
	}
	return nil
}

func (v *volumeRecord) mirror(id lun.Identity) *mirrorRecord {
	for i := range v.Mirrors {
		if v.Mirrors[i].ID == id {
			return &v.Mirrors[i]
		}
	}
	return nil
}

// inSync is how many mirrors are.
func (v *volumeRecord) inSync() (n int) {
	for _, m := range v.Mirrors {
		if m.State == inSync {
			n++
		}
	}
	return n
}

// noteUnmirrored keeps the time since when fewer than two mirrors are in sync.
func (v *volumeRecord) noteUnmirrored(now time.Time) {
	switch n := v.inSync(); {
	case n >= 2:
		v.Unmirrored = time.Time{}
	case v.Unmirrored.IsZero():
		v.Unmirrored = now
	}
}

var volumeName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// check refuses a catalogue that says what this program would never write,
// before a path or a size of it is used.
func (c *catalog) check() error {
	seen := map[lun.Identity]bool{}
	once := func(id lun.Identity, what string) error {
		if id.IsZero() || seen[id] {
			return fmt.Errorf("%s %s occurs twice or is zero", what, id)
		}
		seen[id] = true
		return nil
	}
	mirror := func(m *mirrorRecord) error {
		if _, ok := c.Pools[m.Pool]; !ok {
			return fmt.Errorf("mirror %s: unknown pool %.80q", m.ID, m.Pool)
		}
		if !filepath.IsLocal(m.File) {
			return fmt.Errorf("mirror %s: path %.80q leads out of its pool", m.ID, m.File)
		}
		for _, t := range m.Todo {
			if !filepath.IsLocal(t) {
				return fmt.Errorf("mirror %s: path %.80q leads out of the state directory", m.ID, t)
			}
		}
		return once(m.ID, "mirror")
	}
	for i := range c.Volumes {
		v := &c.Volumes[i]
		if err := once(v.ID, "volume"); err != nil {
			return err
		}
		if !volumeName.MatchString(v.Name) || checkSize(v.Size) != nil {
			return fmt.Errorf("volume %s: name %.80q or size %d is impossible", v.ID, v.Name, v.Size)
		}
		if !slices.IsSorted(v.Epochs) || len(v.Epochs) > 0 && v.Epochs[len(v.Epochs)-1] >= v.NextEpoch {
			return fmt.Errorf("volume %s: epochs out of order", v.ID)
		}
		if err := v.Policy.check(); err != nil {
			return fmt.Errorf("volume %s: %w", v.ID, err)
		}
		for j := range v.Mirrors {
			if err := mirror(&v.Mirrors[j]); err != nil {
				return err
			}
		}
	}
	for i := range c.Snapshots {
		s := &c.Snapshots[i]
		if err := once(s.ID, "snapshot"); err != nil {
			return err
		}
		if err := mirror(&s.Mirror); err != nil {
			return err
		}
		if checkSize(s.Size) != nil {
			return fmt.Errorf("snapshot %s: size %d is impossible", s.ID, s.Size)
		}
		if v := c.volume(s.Volume); v != nil && !slices.Contains(v.Epochs, s.Epoch) {
			return fmt.Errorf("snapshot %s: its epoch %d is not one of its volume's", s.ID, s.Epoch)
		}
	}
	for _, p := range c.Pending {
		for _, m := range p.Members {
			v := c.volume(m.Volume)
			if v == nil || v.mirror(m.Mirror) == nil {
				return fmt.Errorf("pending split %.63q: no volume %s with a mirror %s", p.Tag, m.Volume, m.Mirror)
			}
		}
	}
	for _, t := range c.Trash {
		if !filepath.IsLocal(t.Path) {
			return fmt.Errorf("path %.80q leads out of its directory", t.Path)
		}
	}
	return nil
}

func checkSize(n int64) error {
	if n <= 0 || n%sector != 0 || n > maxVolume {
		return driver.Errorf(driver.InvalidRequest, "size %d: want a positive multiple of %d bytes, at most %d", n, sector, int64(maxVolume))
	}
	return nil
}

func decodeCatalog(b []byte) (*catalog, error) {
	c, _, err := decodeAnyCatalog(b)
	return c, err
}

// decodeAnyCatalog reads a catalogue of any version up to ours.
func decodeAnyCatalog(b []byte) (c *catalog, version int, err error) {
	c = new(catalog)
	if version, err = decodeRecord(b, catalogKind, catalogVersion, c); err != nil {
		return nil, 0, err
	}
	if err := c.check(); err != nil {
		return nil, 0, fmt.Errorf("%s record: %w", catalogKind, err)
	}
	return c, version, nil
}

func isNotExist(err error) bool { return errors.Is(err, os.ErrNotExist) }

package lvm2

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/cleave-san/cleave/lun"
)

// Group is a volume group as its metadata text describes it.
type Group struct {
	Name, UUID string
	Seqno      int64
	ExtentSize int64 // bytes
	PVs        []*GroupPV
	LVs        []*LV
	Snapshots  []*Snapshot
	// Description says what the last change was, in the words of who made it.
	Description string
	// Damage lists metadata areas of the group's PVs that were damaged or old
	// while another copy was used.
	Damage []error

	text     *Section // the whole text
	vg       *Section // the group's own section in it
	lvs      map[string]*LV
	pvs      map[string]*GroupPV
	byOrigin map[*LV][]*Snapshot
	where    string
	pools    pools
}

// GroupPV is a physical volume as the group's metadata knows it.
type GroupPV struct {
	Name    string // "pv0", local to the text
	UUID    string
	Hint    string // the path it had when the metadata was written, in the guest
	Start   int64  // bytes from the start of the PV to its first extent
	Extents int64
	PV      *PV // nil: on none of the devices given
	// Marked says that LVM had to do without the PV at some time and has not
	// taken it back: what is on it may be old, so that volumes that need it are
	// refused, as LVM does.
	Marked bool
}

// LV is a logical volume.
type LV struct {
	Name, UUID string
	Visible    bool
	Size       int64 // bytes
	Created    time.Time
	Segments   []*Segment
	// Role is what a segment type makes of the whole volume: "" for a volume
	// with data of its own, "snapshot" for the record that ties an origin to a
	// copy-on-write store, else LVM's type ("thin", "thin-pool", "raid1", …).
	Role string
}

// ThinOrigin is the name of the volume of which a thin volume is a snapshot, ""
// for all others.
func (lv *LV) ThinOrigin() string {
	if len(lv.Segments) == 0 {
		return ""
	}
	return lv.Segments[0].thin.origin
}

// Snapshot is an in-guest snapshot. The name and UUID of a thick one, as LVM
// shows them, are those of its copy-on-write store; a thin one is a volume like
// any other, with content of its own whatever becomes of its origin.
type Snapshot struct {
	Record  *LV // "snapshot0"; the volume itself if Thin
	COW     *LV // the volume itself if Thin
	Origin  *LV
	Chunk   int64 // bytes, as the metadata has it; the store's own header wins
	Merging bool  // lvconvert --merge has begun, or waits for the next activation
	Thin    bool
}

// Size is that of the snapshot's content: a thick one is as large as its origin
// is now, a thin one as its origin was then.
func (s *Snapshot) Size() int64 {
	if s.Thin {
		return s.COW.Size
	}
	return s.Origin.Size
}

const (
	maxExtents = math.MaxUint32
	maxName    = 128
)

// ParseGroup reads a volume group from its metadata text.
func ParseGroup(text []byte) (*Group, error) {
	root, err := ParseText(text)
	if err != nil {
		return nil, err
	}
	g := &Group{text: root, lvs: make(map[string]*LV), pvs: make(map[string]*GroupPV), byOrigin: make(map[*LV][]*Snapshot)}
	for _, it := range root.Items {
		if it.Sub == nil {
			continue
		}
		if g.vg != nil {
			return nil, &lun.FormatError{Format: format, Offset: -1, Field: "metadata text", Value: it.Key, Reason: "is a second volume group in one text"}
		}
		g.vg, g.Name, g.where = it.Sub, it.Key, it.Key
	}
	g.Description, _ = root.fields("").m["description"].Value.(string)
	if g.vg == nil {
		return nil, &lun.FormatError{Format: format, Offset: -1, Field: "metadata text", Reason: "has no volume group"}
	}
	if err := g.parse(); err != nil {
		return nil, err
	}
	return g, nil
}

func (g *Group) parse() error {
	f := g.vg.fields(g.where)
	var err error
	if g.UUID, err = f.uuid(); err != nil {
		return err
	}
	if g.Seqno, err = f.num("seqno", 0, math.MaxUint32); err != nil {
		return err
	}
	ext, err := f.num("extent_size", 1, math.MaxUint32)
	if err != nil {
		return err
	}
	g.ExtentSize = ext * sectorSize
	for _, it := range f.sub("physical_volumes") {
		pv, err := g.parsePV(it)
		if err != nil {
			return err
		}
		g.PVs, g.pvs[pv.Name] = append(g.PVs, pv), pv
	}
	for _, it := range f.sub("logical_volumes") {
		lv, err := g.parseLV(it)
		if err != nil {
			return err
		}
		g.LVs, g.lvs[lv.Name] = append(g.LVs, lv), lv
	}
	if err := g.checkReferences(); err != nil {
		return err
	}
	if err := g.checkAreas(); err != nil {
		return err
	}
	return g.relate()
}

func (f fields) sub(key string) []Item {
	if s := f.m[key].Sub; s != nil {
		return s.Items
	}
	return nil
}

func (f fields) uuid() (string, error) {
	s, err := f.str("id")
	if err != nil {
		return "", err
	}
	bare := strings.ReplaceAll(s, "-", "")
	if len(bare) != uuidLen || strings.IndexFunc(bare, notID) >= 0 {
		return "", f.fail("id", s, "must be 32 letters and digits")
	}
	return dashed(bare), nil
}

func (g *Group) parsePV(it Item) (*GroupPV, error) {
	where := g.where + "/" + it.Key
	if it.Sub == nil {
		return nil, fields{where: g.where}.fail("physical_volumes/"+it.Key, nil, "is no section")
	}
	f := it.Sub.fields(where)
	pv := &GroupPV{Name: it.Key}
	var err error
	if pv.UUID, err = f.uuid(); err != nil {
		return nil, err
	}
	pv.Hint, _ = f.m["device"].Value.(string)
	pv.Marked = slices.Contains(f.strs("flags"), "MISSING")
	start, err := f.num("pe_start", 0, math.MaxInt64/sectorSize)
	if err != nil {
		return nil, err
	}
	pv.Start = start * sectorSize
	if pv.Extents, err = f.num("pe_count", 0, maxExtents); err != nil {
		return nil, err
	}
	if pv.Extents > (math.MaxInt64-pv.Start)/g.ExtentSize {
		return nil, f.fail("pe_count", pv.Extents, "makes the physical volume larger than any disk")
	}
	return pv, nil
}

func (g *Group) parseLV(it Item) (*LV, error) {
	where := g.where + "/" + it.Key
	if it.Sub == nil || len(it.Key) > maxName {
		return nil, fields{where: g.where}.fail("logical_volumes/"+it.Key, nil, "is no volume")
	}
	f := it.Sub.fields(where)
	lv := &LV{Name: it.Key}
	var err error
	if lv.UUID, err = f.uuid(); err != nil {
		return nil, err
	}
	for _, s := range f.strs("status") {
		lv.Visible = lv.Visible || s == "VISIBLE"
	}
	if t, ok := f.m["creation_time"].Value.(int64); ok && t > 0 && t < 1<<40 {
		lv.Created = time.Unix(t, 0).UTC()
	}
	n, err := f.num("segment_count", 0, int64(len(it.Sub.Items)))
	if err != nil {
		return nil, err
	}
	next := int64(0)
	for i := int64(1); i <= n; i++ {
		key := fmt.Sprintf("segment%d", i)
		sub := f.m[key].Sub
		if sub == nil {
			return nil, f.fail(key, nil, fmt.Sprintf("is missing, though segment_count is %d", n))
		}
		sf := sub.fields(where + "/" + key)
		seg, err := parseSegment(sf)
		if err != nil {
			return nil, err
		}
		if seg.Start != next {
			return nil, sf.fail("start_extent", seg.Start, fmt.Sprintf("the segment before ends at extent %d", next))
		}
		if next += seg.Count; next > math.MaxInt64/g.ExtentSize {
			return nil, sf.fail("extent_count", seg.Count, "makes the volume larger than any disk")
		}
		if seg.Type != "striped" {
			lv.Role = seg.Type
		}
		lv.Segments = append(lv.Segments, seg)
	}
	lv.Size = next * g.ExtentSize
	return lv, nil
}

// relate ties snapshots to their origins and stores.
func (g *Group) relate() error {
	stores := make(map[string]string)
	for _, lv := range g.LVs {
		if lv.Role == "thin" {
			g.relateThin(lv)
		}
		if lv.Role != "snapshot" {
			continue
		}
		f := fields{where: g.where + "/" + lv.Name}
		if len(lv.Segments) != 1 {
			return f.fail("segment_count", len(lv.Segments), "a snapshot has one segment")
		}
		s := lv.Segments[0].snapshot
		origin, store := g.lvs[s.origin], g.lvs[s.store]
		switch {
		case origin == nil:
			return f.fail("origin", s.origin, "no such logical volume")
		case store == nil:
			return f.fail("cow_store", s.store, "no such logical volume")
		case origin == store:
			return f.fail("cow_store", s.store, "a volume can't keep the copies of itself")
		case stores[s.store] != "":
			return f.fail("cow_store", s.store, "is the store of "+stores[s.store]+" as well")
		}
		stores[s.store] = lv.Name
		g.addSnapshot(&Snapshot{Record: lv, COW: store, Origin: origin, Chunk: s.chunk, Merging: s.merging})
	}
	for _, s := range g.Snapshots {
		if by := stores[s.Origin.Name]; by != "" {
			return fields{where: g.where + "/" + s.Record.Name}.fail("origin", s.Origin.Name, "is itself the store of "+by)
		}
	}
	return nil
}

// relateThin takes a thin volume for a snapshot if its origin is still there:
// one whose origin is gone is an ordinary volume.
func (g *Group) relateThin(lv *LV) {
	t := lv.Segments[0].thin
	origin := g.lvs[t.origin]
	if origin == nil || origin == lv || origin.Role != "thin" || len(lv.Segments) != 1 {
		return
	}
	s := &Snapshot{Record: lv, COW: lv, Origin: origin, Thin: true, Merging: t.merge == origin.Name}
	if pool := g.lvs[t.pool]; pool != nil && pool.Role == "thin-pool" {
		s.Chunk = pool.Segments[0].pool.chunk
	}
	g.addSnapshot(s)
}

func (g *Group) addSnapshot(s *Snapshot) {
	g.Snapshots = append(g.Snapshots, s)
	g.byOrigin[s.Origin] = append(g.byOrigin[s.Origin], s)
}

// LV returns a logical volume by its name or UUID, nil if there is none.
func (g *Group) LV(name string) *LV {
	if lv := g.lvs[name]; lv != nil {
		return lv
	}
	for _, lv := range g.LVs {
		if lv.UUID == name {
			return lv
		}
	}
	return nil
}

// SnapshotsOf lists the snapshots of an origin in the text's order.
func (g *Group) SnapshotsOf(lv *LV) []*Snapshot { return g.byOrigin[lv] }

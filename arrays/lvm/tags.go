package lvm

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
)

// Tags, "key=value" each (lvm(8), "Tags").
const (
	// On a snapshot: its set's tag, its volume's UUID, the time in milliseconds since
	// 1970, and that it was written to.
	tagTag    = "cleave.tag"
	tagOf     = "cleave.of"
	tagAt     = "cleave.at"
	tagSkewed = "cleave.skewed"
	// On a volume: the set that splits it, before it does; tagAt beside it. A split
	// is the set's from the moment on that it is there, also if nobody came to tag it.
	tagSplit = "cleave.split"
	// On a volume: how many images it had before one was split off for good.
	tagMirrors = "cleave.mirrors"
)

// snapshot is what came off a volume.
type snapshot struct {
	*lv
	of      *lv
	tag     string
	at      time.Time
	tracked bool // it goes back by a merge
	own     bool // it has tags of its own
}

// snapshots are all that carry a set's tag, or all with "".
func (g *group) snapshots(tag string) (out []snapshot) {
	for _, v := range g.lvs {
		if v.internal {
			continue
		}
		if t := v.value(tagTag); t != "" {
			of := g.byUUID(v.value(tagOf))
			if of == nil { // its volume was removed: it is there all the same
				of = &lv{uuid: v.value(tagOf), name: "a removed volume", size: v.size}
			}
			if uuidForm.MatchString(of.uuid) {
				out = append(out, snapshot{lv: v, of: of, tag: t, at: when(v), own: true})
			}
			continue
		}
		if t := v.value(tagSplit); t != "" {
			if x := g.tracked(v); x != nil {
				out = append(out, snapshot{lv: x, of: v, tag: t, at: when(v), tracked: true})
			} else if x := g.byName(g.splitName(driver.Tag(t), v)); x != nil && x.value(tagTag) == "" {
				out = append(out, snapshot{lv: x, of: v, tag: t, at: when(v)})
			}
		}
	}
	out = slices.DeleteFunc(out, func(s snapshot) bool { return tag != "" && s.tag != tag })
	slices.SortFunc(out, func(a, b snapshot) int { return cmp.Compare(a.uuid, b.uuid) })
	return out
}

// of is the snapshot of a volume with a tag.
func (g *group) of(tag driver.Tag, v *lv) (snapshot, bool) {
	for _, s := range g.snapshots(string(tag)) {
		if s.of == v {
			return s, true
		}
	}
	return snapshot{}, false
}

// id names a snapshot by its set as well: the image of a tracked split is the same
// logical volume in the next set.
func (s snapshot) id() driver.SnapshotID { return driver.SnapshotID(s.tag + "@" + s.uuid) }

// byID finds a snapshot.
func (g *group) byID(id driver.SnapshotID) (snapshot, bool) {
	tag, _, ok := strings.Cut(string(id), "@")
	if !ok || tag == "" {
		return snapshot{}, false
	}
	for _, s := range g.snapshots(tag) {
		if s.id() == id {
			return s, true
		}
	}
	return snapshot{}, false
}

func when(v *lv) time.Time {
	ms, err := strconv.ParseInt(v.value(tagAt), 10, 64)
	if err != nil || ms < 0 || ms > 1<<50 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// splitName is the name of what comes off a volume. Device-mapper's names are shorter
// than 128 bytes, and LVM doubles each hyphen in them.
func (g *group) splitName(tag driver.Tag, v *lv) string {
	name := "cleave-" + string(tag) + "-" + v.name
	if whole := g.name + "-" + name; len(whole)+strings.Count(whole, "-") > 110 {
		name = "cleave-" + string(tag) + "-" + v.uuid[:6]
	}
	return name
}

// describe is a snapshot as the engine has it.
func (s snapshot) describe() driver.Snapshot {
	x := driver.Snapshot{
		ID: s.id(), Tag: driver.Tag(s.tag), Volume: driver.VolumeID(s.of.uuid), Size: s.size, At: s.at,
		Method: driver.MirrorSplit, State: driver.Split,
	}
	if s.plays("snapshot") {
		x.Method, x.State = driver.ArraySnapshot, driver.Synchronized
		if s.plays("thicksnapshot") {
			x.Size = s.of.size // its own is the room for changes
		}
	}
	switch {
	case s.invalid || s.health != "":
		x.State = driver.Invalid
	case s.suspended:
		x.State = driver.Suspended
	case s.tagged(tagSkewed):
		x.State = driver.Skewed
	}
	return x
}

package btrfs

import (
	"errors"
	"fmt"
	"slices"
)

// ErrNoRevert says that a subvolume can't be put back to a snapshot by what Edit
// does. Compared with errors.Is; the text says why.
var ErrNoRevert = errors.New("can't be put in the place of what it is a snapshot of")

// Patch is bytes of the device that become others.
type Patch struct {
	Off  int64
	Data []byte
}

// Edit is changes of a few tree blocks, in place, with new checksums, in all of
// their copies. It is used by one goroutine.
//
// The blocks keep their generation and place: nothing is allocated, so that extent
// tree and free space stay as they are. The price is that the change is not one of
// Btrfs's own transactions: whoever writes the patches to a device has to see to it
// that all of them get there.
type Edit struct {
	f     *FS
	list  map[uint64]*Subvolume
	nodes map[uint64]node
	super bool // the default subvolume is none of the kernel's making
}

// Edit begins one; list is what Subvolumes returned.
func (f *FS) Edit(list []*Subvolume) *Edit {
	e := &Edit{f: f, list: make(map[uint64]*Subvolume), nodes: make(map[uint64]node)}
	for _, s := range list {
		e.list[s.ID] = s
	}
	return e
}

// OriginOf is the subvolume of which one is a snapshot, nil if it is gone or there
// was none.
func OriginOf(s *Subvolume, list []*Subvolume) *Subvolume {
	if s.ParentUUID == "" {
		return nil
	}
	for _, o := range list {
		if o.UUID == s.ParentUUID {
			return o
		}
	}
	return nil
}

// Revert puts a subvolume back to a snapshot of it, for every guest that mounts it
// by default or by its path:
//
//   - If it is the default subvolume, the snapshot becomes that.
//   - The two exchange their names: the directory entries that lead to them, and the
//     references of the root tree. The subvolume as it was is where the snapshot was.
//   - The snapshot may be written to.
//
// Names stay as they are where one lies within the other, or the subvolume is the top
// level, which has no name: that is ErrNoRevert unless it is the default one. A guest
// that mounts by subvolume ID, as by "subvolid=" in fstab, still gets what it was.
func (e *Edit) Revert(snap *Subvolume) error {
	var origin *Subvolume
	for _, o := range e.list {
		if snap.ParentUUID != "" && o.UUID == snap.ParentUUID {
			origin = o
		}
	}
	refuse := func(why string) error {
		return fmt.Errorf("subvolume %d (%s) %w: %s", snap.ID, snap.Path, ErrNoRevert, why)
	}
	switch {
	case snap.ParentUUID == "":
		return refuse("it is no snapshot")
	case origin == nil:
		return refuse("that is gone")
	case snap.Err != nil:
		return snap.Err
	case origin.Err != nil:
		return origin.Err
	}
	names := origin.ID != TopLevel && !e.within(snap, origin) && !e.within(origin, snap)
	if !names && !origin.Default {
		return refuse("one lies within the other, and it is not the default subvolume")
	}
	if origin.Default {
		if err := e.MakeDefault(snap); err != nil {
			return err
		}
	}
	if names {
		if err := e.exchange(origin, snap); err != nil {
			return fmt.Errorf("exchange the names of subvolumes %d (%s) and %d (%s): %w", origin.ID, origin.Path, snap.ID, snap.Path, err)
		}
	}
	return e.change(e.f.rootTree(), snap.key, func(b []byte) error {
		le.PutUint64(b[208:], le.Uint64(b[208:])&^rootReadOnly)
		if len(b) >= rootItemSize {
			clear(b[279:295]) // what may be written is no longer what was received
		}
		return nil
	})
}

// Forget has a snapshot be one no more, so that Revert refuses it: nobody exchanges
// names a second time and gets the old state back for the new one.
func (e *Edit) Forget(snap *Subvolume) error {
	return e.change(e.f.rootTree(), snap.key, func(b []byte) error {
		if len(b) >= rootItemSize {
			clear(b[263:279]) // parent_uuid
		}
		return nil
	})
}

// MakeDefault has a subvolume mounted where a guest asks for none.
func (e *Edit) MakeDefault(s *Subvolume) error {
	e.super = true
	err := e.entry(e.f.rootTree(), Key{rootDir, DirItem, nameHash("default")}, "default", s.ID)
	if err != nil {
		return fmt.Errorf("default subvolume: %w", err)
	}
	return nil
}

// within reports whether s lies below top.
func (e *Edit) within(s, top *Subvolume) bool {
	for range maxDepth {
		if s = e.list[s.Parent]; s == nil {
			return false
		}
		if s == top {
			return true
		}
	}
	return true
}

// exchange has the names of a and b lead to the other one.
func (e *Edit) exchange(a, b *Subvolume) error {
	for _, s := range []struct{ at, to *Subvolume }{{a, b}, {b, a}} {
		up := e.list[s.at.Parent]
		if up == nil {
			return damaged(-1, "root backref", s.at.ID, "the subvolume lies in none")
		}
		t := e.f.Tree(up)
		for _, k := range []Key{{s.at.dir, DirItem, nameHash(s.at.name)}, {s.at.dir, DirIndex, s.at.seq}} {
			if err := e.alone(up, k); err != nil {
				return err
			}
			if err := e.entry(t, k, s.at.name, s.to.ID); err != nil {
				return err
			}
		}
	}
	ref := func(s *Subvolume) []byte {
		r := le.AppendUint64(nil, s.dir)
		r = le.AppendUint64(r, s.seq)
		r = le.AppendUint16(r, uint16(len(s.name)))
		return append(r, s.name...)
	}
	root := e.f.rootTree()
	for _, s := range []*Subvolume{a, b} {
		for _, k := range []Key{{s.Parent, RootRef, s.ID}, {s.ID, RootBackref, s.Parent}} {
			if err := e.put(root, k, nil); err != nil {
				return err
			}
		}
	}
	for _, s := range []struct{ at, to *Subvolume }{{a, b}, {b, a}} {
		for _, k := range []Key{{s.at.Parent, RootRef, s.to.ID}, {s.to.ID, RootBackref, s.at.Parent}} {
			if err := e.put(root, k, ref(s.at)); err != nil {
				return err
			}
		}
	}
	return nil
}

// alone refuses a block that a snapshot may share: a change there would be one of
// the snapshot, too.
func (e *Edit) alone(s *Subvolume, k Key) error {
	way, err := e.descend(e.f.Tree(s), k)
	if err != nil {
		return err
	}
	for _, at := range way {
		if n := e.node(at.logical); n.generation() <= s.kept || n.owner() != s.ID {
			return fmt.Errorf("subvolume %d (%s), in which the names are, shares blocks with a snapshot of its own: %w", s.ID, s.Path, ErrNoRevert)
		}
	}
	return nil
}

// entry has the entry of a name in a directory item lead to a subvolume.
func (e *Edit) entry(t *Tree, k Key, name string, id uint64) error {
	return e.change(t, k, func(b []byte) error {
		for d := range Entries(b) {
			if d.Name == name && d.Location.Type == RootItem {
				le.PutUint64(b, id)
				return nil
			}
			b = b[entryHeader+len(d.Name)+len(d.Data):]
		}
		return damaged(-1, "directory item", k.String(), fmt.Sprintf("has no subvolume called %.80q", name))
	})
}

// step is a block on the way from a root to a leaf, and the slot that was taken.
type step struct {
	logical uint64
	slot    int
}

// node is a block that was read by descend, with what was changed in it.
func (e *Edit) node(logical uint64) node { return e.nodes[logical] }

// descend goes to the leaf where a key is or would be.
func (e *Edit) descend(t *Tree, k Key) ([]step, error) {
	var way []step
	for p := t.root; ; {
		n := e.nodes[p.logical]
		if n == nil {
			read, err := e.f.node(p)
			if err != nil {
				return nil, err
			}
			n = slices.Clone(read)
			e.nodes[p.logical] = n
		}
		i := n.find(k)
		if n.level() == 0 {
			return append(way, step{p.logical, i}), nil
		}
		if i > 0 && (i == n.count() || n.key(i) != k) {
			i--
		}
		way = append(way, step{p.logical, i})
		p = n.child(i)
		p.first = nil // it may have been changed here
	}
}

// change has fn change an item where it is.
func (e *Edit) change(t *Tree, k Key, fn func(b []byte) error) error {
	way, err := e.descend(t, k)
	if err != nil {
		return err
	}
	at := way[len(way)-1]
	n := e.node(at.logical)
	if at.slot == n.count() || n.key(at.slot) != k {
		return damaged(-1, "item", k.String(), "is not there")
	}
	return fn(n.data(at.slot))
}

type item struct {
	key  Key
	data []byte
}

// put inserts an item, or takes one out where data is nil.
func (e *Edit) put(t *Tree, k Key, data []byte) error {
	way, err := e.descend(t, k)
	if err != nil {
		return err
	}
	at := way[len(way)-1]
	n := e.node(at.logical)
	var items []item
	for i := range n.count() {
		items = append(items, item{n.key(i), slices.Clone(n.data(i))})
	}
	there := at.slot < len(items) && items[at.slot].key == k
	switch {
	case there == (data != nil):
		return damaged(-1, "item", k.String(), "is not there, or is there already")
	case there:
		items = slices.Delete(items, at.slot, at.slot+1)
	default:
		items = slices.Insert(items, at.slot, item{k, data})
	}
	room := len(n) - nodeHeader
	for _, it := range items {
		room -= itemSize + len(it.data)
	}
	if room < 0 || len(items) == 0 {
		return fmt.Errorf("a tree block would have to be split or removed: %w", ErrNoRevert)
	}
	clear(n[nodeHeader:])
	le.PutUint32(n[96:], uint32(len(items)))
	end := len(n) - nodeHeader
	for i, it := range items {
		end -= len(it.data)
		s := n.slot(i)
		it.key.put(s)
		le.PutUint32(s[17:], uint32(end))
		le.PutUint32(s[21:], uint32(len(it.data)))
		copy(n[nodeHeader+end:], it.data)
	}
	// Parents name the first key of a child.
	first := items[0].key
	for i := len(way) - 2; i >= 0; i-- {
		up := e.node(way[i].logical)
		first.put(up.slot(way[i].slot))
		if way[i].slot > 0 {
			break
		}
	}
	return nil
}

// Patches are what has to be written, by offset: each block in all its copies, and
// the superblocks where the default subvolume was changed for the first time.
func (e *Edit) Patches() ([]Patch, error) {
	var out []Patch
	for logical, n := range e.nodes {
		places, _, err := e.f.locate(logical)
		if err != nil {
			return nil, err
		}
		e.f.super.sum().set(n)
		for _, at := range places {
			was := make(node, len(n))
			if err := e.f.read(was, at); err != nil {
				return nil, err
			}
			if !slices.Equal(was, n) {
				out = append(out, Patch{at, n})
			}
		}
	}
	if e.super && e.f.super.incompat()&incompatDefaultSubvol == 0 {
		for _, at := range superAt {
			if at > e.f.dev.Size()-superSize || uint64(at)+superSize > e.f.super.total() {
				break
			}
			s := make(super, superSize)
			if err := e.f.read(s, at); err != nil {
				return nil, err
			}
			if string(s[64:72]) != magic || s.check(at) != nil {
				continue
			}
			le.PutUint64(s[188:], uint64(s.incompat()|incompatDefaultSubvol))
			s.sum().set(s)
			out = append(out, Patch{at, s})
		}
	}
	slices.SortFunc(out, func(a, b Patch) int { return int(min(1, max(-1, a.Off-b.Off))) })
	return out, nil
}

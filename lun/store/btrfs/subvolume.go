package btrfs

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Object IDs with a meaning.
const (
	// TopLevel is the subvolume that every file system has.
	TopLevel = 5
	// FirstFree is the first ID of other subvolumes, and the inode of the topmost
	// directory of each.
	FirstFree = 256
	lastFree  = ^uint64(0) - 255
	rootDir   = 6 // of the root tree: it names the default subvolume
)

const (
	// maxSubvolumes bounds what is listed.
	maxSubvolumes = 1 << 16
	maxDepth      = 256
	maxPath       = 4096
)

// Subvolume is a subvolume or a snapshot of one.
type Subvolume struct {
	ID         uint64
	UUID       string // "" of one made by a kernel before 3.10, and of the top level of old file systems
	ParentUUID string // of what it is a snapshot of; "" of none
	Received   string // UUID of what btrfs receive made it from
	Parent     uint64 // the subvolume that it lies in; 0 of the top level
	Path       string // from the top level, without a slash at its beginning; "" of the top level
	Generation uint64 // of its last change
	Origin     uint64 // generation in which it was made
	Created    time.Time
	ReadOnly   bool
	Default    bool // mounted where no other one is asked for
	// Err says why its tree can't be found.
	Err error

	dir  uint64 // the directory in Parent
	seq  uint64
	name string
	root pointer
	key  Key    // of its root item
	kept uint64 // generation of its last snapshot: older blocks may be shared
}

// Snapshot reports whether it was made as a snapshot.
func (s *Subvolume) Snapshot() bool { return s.ParentUUID != "" }

// A root item (struct btrfs_root_item), of 239 bytes before 3.10 and 439 since:
//
//	160 8 generation      216 4 refs            263 16 parent_uuid
//	176 8 bytenr          238 1 level           279 16 received_uuid
//	208 8 flags           239 8 generation_v2   303  8 otransid
//	                      247 16 uuid           339 12 otime
const (
	rootItemOld  = 239
	rootItemSize = 439
	rootReadOnly = 1
)

// Subvolumes lists all subvolumes and snapshots by ID, the top level first. Those
// that are being deleted are not among them.
func (f *FS) Subvolumes() ([]*Subvolume, error) {
	byID := make(map[uint64]*Subvolume)
	var out []*Subvolume
	standard := uint64(TopLevel)
	err := f.rootTree().Walk(Key{Object: TopLevel}, func(k Key, b []byte) (bool, error) {
		switch {
		case k.Object == rootDir && k.Type == DirItem:
			for e := range Entries(b) {
				if e.Name == "default" && e.Location.Type == RootItem {
					standard = e.Location.Object
				}
			}
		case k.Object != TopLevel && (k.Object < FirstFree || k.Object > lastFree):
		case k.Type == RootItem:
			s, err := parseRoot(k, b)
			if err != nil || s == nil {
				return true, err
			}
			if old := byID[s.ID]; old != nil { // a relocation in progress has several; the last counts
				*old = *s
				return true, nil
			}
			if len(out) == maxSubvolumes {
				return false, damaged(-1, "subvolumes", maxSubvolumes, "there are too many")
			}
			byID[s.ID] = s
			out = append(out, s)
		case k.Type == RootBackref && len(b) > rootRefSize:
			if s := byID[k.Object]; s != nil {
				s.Parent, s.dir, s.seq, s.name = k.Offset, le.Uint64(b), le.Uint64(b[8:]), string(b[rootRefSize:])
			}
		}
		return true, nil
	})
	if err != nil {
		return nil, fmt.Errorf("root tree: %w", err)
	}
	for _, s := range out {
		s.Default = s.ID == standard
		s.Path, s.Err = f.path(s, byID)
	}
	slices.SortFunc(out, func(a, b *Subvolume) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

// parseRoot is nil for a subvolume that is being deleted.
func parseRoot(k Key, b []byte) (*Subvolume, error) {
	if len(b) < rootItemOld {
		return nil, damaged(-1, "root item", k.Object, "is too short")
	}
	if le.Uint32(b[216:]) == 0 {
		return nil, nil
	}
	s := &Subvolume{ID: k.Object, Generation: le.Uint64(b[160:]), ReadOnly: le.Uint64(b[208:])&rootReadOnly != 0}
	s.key, s.kept = k, le.Uint64(b[200:])
	s.root = pointer{le.Uint64(b[176:]), s.Generation, b[238], nil}
	if s.root.level >= maxLevel {
		return nil, damaged(-1, "root level", s.root.level, "trees are not that high")
	}
	if len(b) < rootItemSize || le.Uint64(b[239:]) != s.Generation {
		return s, nil // an old kernel wrote it last, and does not know what follows
	}
	some := func(u []byte) string {
		if string(u) == strings.Repeat("\x00", 16) {
			return ""
		}
		return uuid(u)
	}
	s.UUID, s.ParentUUID, s.Received = some(b[247:263]), some(b[263:279]), some(b[279:295])
	s.Origin = le.Uint64(b[303:])
	if sec := le.Uint64(b[339:]); sec > 0 && sec < 1<<40 {
		s.Created = time.Unix(int64(sec), int64(le.Uint32(b[347:])%1e9)).UTC()
	}
	return s, nil
}

// rootRefSize precedes the name in root references: dirid, sequence, name_len.
const rootRefSize = 18

// path goes from a subvolume up to the top level.
func (f *FS) path(s *Subvolume, byID map[uint64]*Subvolume) (string, error) {
	path := ""
	for depth := 0; s.ID != TopLevel; depth++ {
		up := byID[s.Parent]
		switch {
		case depth == maxDepth || len(path) > maxPath:
			return path, damaged(-1, "root backref", s.ID, "subvolumes lie within each other, too deep or in a circle")
		case up == nil:
			return path, damaged(-1, "root backref", s.ID, "the subvolume lies in none")
		}
		dir, err := f.dirPath(up, s.dir)
		if err != nil {
			return path, err
		}
		path = join(join(dir, s.name), path)
		s = up
	}
	return path, nil
}

// dirPath is the path of a directory within its subvolume.
func (f *FS) dirPath(s *Subvolume, dir uint64) (string, error) {
	path := ""
	t := f.Tree(s)
	for depth := 0; dir != FirstFree; depth++ {
		if depth == maxDepth || len(path) > maxPath {
			return path, damaged(-1, "inode ref", dir, "directories lie within each other, too deep or in a circle")
		}
		found, name := uint64(0), ""
		err := t.Walk(Key{dir, InodeRef, 0}, func(k Key, b []byte) (bool, error) {
			if k.Object == dir && k.Type == InodeRef && len(b) > 10 && int(le.Uint16(b[8:])) <= len(b)-10 {
				found, name = k.Offset, string(b[10:10+le.Uint16(b[8:])])
			}
			return false, nil
		})
		if err != nil {
			return path, err
		}
		if found == 0 {
			return path, damaged(-1, "inode ref", dir, "a directory has no name")
		}
		path, dir = join(name, path), found
	}
	return path, nil
}

func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "/" + b
}

// Tree is a subvolume's.
func (f *FS) Tree(s *Subvolume) *Tree { return &Tree{f, s.root} }

// DirEntry is one of the entries of a directory item, or an extended attribute.
//
//	 0 17 location      25 2 data_len      29 1 type
//	17  8 transid       27 2 name_len      30   name, then data
type DirEntry struct {
	Location Key
	Type     uint8 // BTRFS_FT_*
	Name     string
	Data     []byte
}

const entryHeader = 30

// Entries are those in a directory item, directory index or extended attribute, as
// far as they are whole.
func Entries(b []byte) func(yield func(DirEntry) bool) {
	return func(yield func(DirEntry) bool) {
		for len(b) >= entryHeader {
			data, name := int(le.Uint16(b[25:])), int(le.Uint16(b[27:]))
			end := entryHeader + name + data
			if end > len(b) {
				return
			}
			if !yield(DirEntry{ParseKey(b), b[29], string(b[entryHeader : entryHeader+name]), b[entryHeader+name : end]}) {
				return
			}
			b = b[end:]
		}
	}
}

// NameKey is the key of the directory item of a name, or of an extended attribute.
func NameKey(inode uint64, kind uint8, name string) Key { return Key{inode, kind, nameHash(name)} }

// In reports whether it is what a name in a directory of its parent means: a
// snapshot of the parent has the name as well, and nothing behind it.
func (s *Subvolume) In(dir uint64, name string) bool { return s.dir == dir && s.name == name }

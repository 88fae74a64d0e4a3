package vss

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/cleave-san/cleave/lun"
)

const (
	entrySize = 128
	// maxCopies is what Windows allows on a volume. A catalog that names more is
	// refused.
	maxCopies  = 512
	maxCatalog = 64 // blocks
)

// Volume is a volume with its shadow copies. It never changes and may be used by
// several goroutines.
type Volume struct {
	Version uint32  // of the volume header: 1 or 2
	ID      string  // the volume's GUID, as Windows names it in \\?\Volume{...}
	Copies  []*Copy // by the time they were made, the oldest first

	dev lun.Device
}

// Copy is a shadow copy.
type Copy struct {
	Number  int    // its place in Volume.Copies, from 1
	ID      string // the shadow copy's GUID, as vssadmin lists it; "" if the store can't be read
	Set     string // GUID of the shadow copy set
	Store   string // GUID of the store
	Created time.Time
	Size    int64 // of the volume then, in bytes
	// Attributes are those of VSS_VOLUME_SNAPSHOT_ATTRIBUTES.
	Attributes uint32
	Machine    string // where it was made
	// Err says why it can't be opened; nil says that its headers are in order.
	Err error

	sequence                        uint64
	list, header, bitmap, oldBitmap uint64
	placed                          bool // the catalog says where the store lies
}

// Read reads the volume header and the catalog of dev, which is the volume from
// its first sector. lun.ErrNotFormat: there never was a shadow copy. That the
// header is there and there are no copies is no error. A copy of which the store
// is damaged is listed with the reason in Err; what damages the list itself is an
// error.
func Read(dev lun.Device) (*Volume, error) {
	if dev.Size() < headerAt+sector {
		return nil, lun.ErrNotFormat
	}
	h := make(volumeHeader, sector)
	if err := readAt(dev, h, headerAt, "volume header"); err != nil {
		return nil, err
	}
	switch {
	case string(h[:16]) != signature:
		return nil, lun.ErrNotFormat
	case !versionKnown(h.version()):
		return nil, damaged(headerAt+16, "version", h.version(), "only 1 and 2 are read")
	case h.record() != recVolume:
		return nil, damaged(headerAt+20, "record type", h.record(), "is none of a volume header")
	case h.offset() != headerAt:
		return nil, damaged(headerAt+24, "offset", h.offset(), "the header says that it lies elsewhere")
	}
	v := &Volume{Version: h.version(), ID: h.volume().String(), dev: dev}
	if h.catalog() == 0 {
		return v, nil
	}
	if h.storage() != h.volume() {
		return nil, damaged(headerAt+80, "storage volume", h.storage().String(), "the shadow copies are stored on another volume: that is not read")
	}
	if dev.Size() > maxVolume {
		return nil, damaged(headerAt, "volume", dev.Size(), "is larger than 64 TiB, and VSS ends there")
	}
	if err := v.readCatalog(h.catalog()); err != nil {
		return nil, err
	}
	for _, c := range v.Copies {
		if c.Err == nil {
			c.Err = v.readStore(c)
		}
	}
	return v, nil
}

// A catalog entry: of type 2 what the copy is, of type 3 where its store lies.
// They are joined by the store's GUID and need not be neighbours.
//
//	   type 2                  type 3
//	 8 volume size            8 block list offset
//	16 store GUID            16 store GUID
//	32 sequence              32 store header offset
//	48 creation time         40 range list offset
//	                         48 bitmap offset
//	                         72 previous bitmap offset
type catalogEntry []byte

func (e catalogEntry) kind() uint64         { return le.Uint64(e) }
func (e catalogEntry) store() guid          { return guid(e[16:32]) }
func (e catalogEntry) number(at int) uint64 { return le.Uint64(e[at:]) }

const (
	entryEmpty = iota
	entryUnused
	entryCopy
	entryStore
)

func (v *Volume) readCatalog(off uint64) error {
	copies := make(map[guid]*Copy)
	places := make(map[guid]catalogEntry)
	err := v.walk(off, recCatalog, maxCatalog, func(at int64, content []byte) (bool, error) {
		for i := 0; i+entrySize <= len(content); i += entrySize {
			e := catalogEntry(content[i : i+entrySize])
			switch e.kind() {
			case entryEmpty, entryUnused:
			case entryCopy:
				if copies[e.store()] != nil {
					return false, damaged(at+int64(i), "store", e.store().String(), "is in the catalog twice")
				}
				if len(copies) == maxCopies {
					return false, damaged(at+int64(i), "entries", maxCopies+1, fmt.Sprintf("VSS has at most %d shadow copies of a volume", maxCopies))
				}
				c := &Copy{Store: e.store().String(), Created: filetime(e.number(48)), sequence: e.number(32)}
				size := e.number(8)
				if size > maxVolume {
					return false, damaged(at+int64(i)+8, "volume size", size, "is larger than VSS allows")
				}
				c.Size = int64(size)
				copies[e.store()] = c
				v.Copies = append(v.Copies, c)
			case entryStore:
				if places[e.store()] != nil {
					return false, damaged(at+int64(i), "store", e.store().String(), "has two places in the catalog")
				}
				if len(places) == maxCopies {
					return false, damaged(at+int64(i), "entries", maxCopies+1, fmt.Sprintf("VSS has at most %d shadow copies of a volume", maxCopies))
				}
				places[e.store()] = slices.Clone(e)
			default:
				return false, damaged(at+int64(i), "entry type", e.kind(), "is not known")
			}
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	for g, c := range copies {
		if e := places[g]; e != nil {
			c.list, c.header, c.bitmap, c.oldBitmap, c.placed = e.number(8), e.number(32), e.number(48), e.number(72), true
		}
	}
	slices.SortStableFunc(v.Copies, func(a, b *Copy) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.sequence, b.sequence))
	})
	for i, c := range v.Copies {
		c.Number = i + 1
		switch {
		case !c.placed:
			c.Err = damaged(-1, "catalog", c.Store, "does not say where in the volume the store is: what it keeps is not here")
		case c.Size > v.dev.Size():
			c.Err = damaged(-1, "volume size", c.Size, fmt.Sprintf("the volume was larger when the copy was made than it is now (%d bytes)", v.dev.Size()))
		}
	}
	return nil
}

// readStore reads the store header: 128 bytes as every block, then
//
//	off size field
//	 16  16  shadow copy GUID
//	 32  16  GUID of the shadow copy set
//	 48   4  type
//	 56   4  attributes
//	 64      operating machine, then service machine: a length in bytes (2), UTF-16
func (v *Volume) readStore(c *Copy) error {
	b := make([]byte, Block)
	if _, err := v.block(b, c.header, recStore); err != nil {
		return err
	}
	b = b[blockHeader:]
	c.ID, c.Set = guid(b[16:32]).String(), guid(b[32:48]).String()
	c.Attributes = le.Uint32(b[56:])
	if n := int(le.Uint16(b[64:])); n <= len(b)-66 { // longer makes no sense, and is only a name
		c.Machine = text16(b[66 : 66+n])
	}
	return nil
}

func text16(b []byte) string {
	var u []uint16
	for ; len(b) >= 2; b = b[2:] {
		u = append(u, le.Uint16(b))
	}
	return strings.TrimRight(string(utf16.Decode(u)), "\x00")
}

// Find finds a copy by its GUID or that of its store, in any case; nil if there is
// none.
func (v *Volume) Find(id string) *Copy {
	for _, c := range v.Copies {
		if id != "" && (strings.EqualFold(c.ID, id) || strings.EqualFold(c.Store, id)) {
			return c
		}
	}
	return nil
}

// ErrChain says that a younger copy, through which this one is read, is damaged.
var ErrChain = errors.New("is read through a younger shadow copy that can't be read")

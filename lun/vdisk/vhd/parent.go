package vhd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/vdisk"
)

// openParent opens the parent by the first of its names that the resolver
// takes, and checks that it is the one the child was made of.
func (m *image) openParent(o vdisk.Options) (func() error, error) {
	names, err := m.parentNames()
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, damaged(m.headAt+64, "Parent Unicode Name", nil, "a differencing disk must name its parent, in a locator or here")
	}
	var parent *image
	d, name, err := o.FirstParent(format, names, func(dev lun.Device, o vdisk.Options) (vdisk.Disk, error) {
		d, p, err := open(dev, o)
		if err != nil {
			return nil, err
		}
		parent = p
		return d, nil
	})
	if err != nil {
		return nil, err
	}
	if err := m.checkParent(name, parent); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	m.parent, m.parents = d, vdisk.Chain(name, d)
	m.warnings = append(m.warnings, vdisk.Inherited(name, d)...)
	return d.Close, nil
}

func (m *image) checkParent(name string, p *image) error {
	if want, got := m.head.parentUniqueID(), p.foot.uniqueID(); got != want {
		return damaged(m.headAt+40, "Parent Unique ID", hexID(want), "the file %.200q has the unique id %s: it is another disk", name, hexID(got))
	}
	if want, got := m.head.parentTimeStamp(), p.foot.timeStamp(); got != want {
		m.warnings = append(m.warnings, damaged(m.headAt+56, "Parent Time Stamp", want,
			"the parent %.200q has the time stamp %d: it may have been changed after the child was made", name, got))
	}
	return nil
}

// maxLocator bounds the data of a locator; Windows paths are shorter.
const maxLocator = 64 << 10

// parentNames lists what the parent may be called, the most trustworthy first:
// relative paths, absolute ones, the name in the header; each as it stands and
// then its last part, for parent and child that were moved together.
func (m *image) parentNames() ([]string, error) {
	var relative, absolute []string
	for i := range 8 {
		l := m.head.locator(i)
		name, err := m.locatorName(i, l)
		if err != nil {
			return nil, err
		}
		switch l.code {
		case "W2ru", "Wi2r":
			relative = append(relative, name)
		default:
			absolute = append(absolute, name)
		}
	}
	var names []string
	seen := map[string]bool{"": true}
	add := func(name string) {
		if !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	for _, name := range append(append(relative, absolute...), m.head.parentUnicodeName()) {
		name = strings.TrimPrefix(name, `.\`)
		add(name)
		add(name[strings.LastIndexAny(name, `\/`)+1:])
	}
	return names, nil
}

// locatorName is empty where the locator holds nothing that is known.
func (m *image) locatorName(i int, l locator) (string, error) {
	switch l.code {
	case "W2ru", "W2ku", "Wi2r", "Wi2k", "MacX":
	default: // "Mac " is an alias record; zero is an empty entry
		return "", nil
	}
	at := m.headAt + 576 + int64(24*i)
	if l.length > maxLocator {
		return "", damaged(at+8, "Platform Data Length", l.length, "no name is longer than %d bytes", maxLocator)
	}
	if l.offset > maxSize || lun.CheckRange(int64(l.offset), int64(l.length), m.dev.Size()) != nil {
		return "", damaged(at+16, "Platform Data Offset", l.offset, "the locator's data lie beyond the end of the file")
	}
	b := make([]byte, l.length)
	if _, err := m.dev.ReadAt(b, int64(l.offset)); err != nil {
		return "", fmt.Errorf("vhd: read parent locator %d: %w", i, err)
	}
	switch l.code {
	case "W2ru", "W2ku":
		return utf16Text(b, binary.LittleEndian), nil
	case "MacX":
		u, err := url.Parse(strings.TrimRight(string(b), "\x00"))
		if err != nil {
			return "", nil // another locator may do
		}
		return u.Path, nil
	}
	return strings.TrimRight(string(b), "\x00"), nil
}

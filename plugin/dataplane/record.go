package dataplane

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/lun"
)

// kind is what a LUN leads to.
type kind string

const (
	kindVolume   kind = "volume"
	kindSnapshot kind = "snapshot"
	kindView     kind = "view"
)

// record is what the target remembers over a restart, in target.json.
type record struct {
	Version    int               `json:"version"`
	Next       int               `json:"next"` // LUN number to try first
	LUNs       []lunRecord       `json:"luns"`
	Initiators []initiatorRecord `json:"initiators"`
}

type lunRecord struct {
	Number     int          `json:"number"`
	Kind       kind         `json:"kind"`
	Of         string       `json:"of"` // volume's or snapshot's ID, view's name
	Identity   lun.Identity `json:"identity"`
	Size       int64        `json:"size"`
	Initiators []iscsi.Name `json:"initiators"`
	// Writable is true if somebody may write: all Initiators but those in
	// ReadOnly. Where nobody may, ReadOnly is empty.
	Writable bool         `json:"writable"`
	ReadOnly []iscsi.Name `json:"readOnly,omitempty"`
	// Views only.
	Socket   string `json:"socket,omitempty"`
	Export   string `json:"export,omitempty"`
	Logical  int    `json:"logical,omitempty"`
	Physical int    `json:"physical,omitempty"`
}

// initiatorRecord names the files that hold an initiator's secrets.
type initiatorRecord struct {
	IQN        iscsi.Name `json:"iqn"`
	User       string     `json:"user,omitempty"`
	Secret     string     `json:"secretFile,omitempty"`
	MutualUser string     `json:"mutualUser,omitempty"`
	Mutual     string     `json:"mutualSecretFile,omitempty"`
}

// recordVersion is what this program writes. Version 1 had no ReadOnly: a program
// that knows no other would let those initiators write, and refuses this one.
const recordVersion = 2

func loadRecord(path string) (*record, error) {
	r := &record{Version: recordVersion, Next: 1}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(b, r)
	}
	if err == nil && (r.Version < 1 || r.Version > recordVersion) {
		err = fmt.Errorf("is of version %d, this program knows 1 to %d", r.Version, recordVersion)
	}
	if err != nil {
		return nil, fmt.Errorf("record of the target %s: %w", path, err)
	}
	r.Version = recordVersion
	return r, nil
}

// save replaces the record in one step: after a crash it is the old or the new
// one.
func (r *record) save(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = replaceFile(path, append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("saving the target's record: %w", err)
	}
	return nil
}

// replaceFile writes a file that only its owner may read, durably and in one
// step.
func replaceFile(path string, b []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (r *record) clone() *record {
	c := *r
	c.LUNs = slices.Clone(r.LUNs)
	for i := range c.LUNs {
		c.LUNs[i].Initiators = slices.Clone(c.LUNs[i].Initiators)
		c.LUNs[i].ReadOnly = slices.Clone(c.LUNs[i].ReadOnly)
	}
	c.Initiators = slices.Clone(r.Initiators)
	return &c
}

func (r *record) find(k kind, of string) *lunRecord {
	for i := range r.LUNs {
		if r.LUNs[i].Kind == k && r.LUNs[i].Of == of {
			return &r.LUNs[i]
		}
	}
	return nil
}

// number hands out the next LUN number: upwards, and from the beginning again
// when the last was given, so that a host that still remembers a number does
// not soon find another LUN under it. usable says which ones no host remembers.
func (r *record) number(usable func(int) bool) (int, error) {
	taken := map[int]bool{}
	for _, l := range r.LUNs {
		taken[l.Number] = true
	}
	for range mask.MaxLUN {
		n := r.Next
		if r.Next++; r.Next > mask.MaxLUN {
			r.Next = 1
		}
		if n >= 1 && n <= mask.MaxLUN && !taken[n] && usable(n) {
			return n, nil
		}
	}
	return 0, fmt.Errorf("all %d LUN numbers are in use, or remembered by initiators that have not logged out", mask.MaxLUN)
}

// grants is what one initiator sees.
func (r *record) grants(who iscsi.Name) []mask.Grant {
	var g []mask.Grant
	for _, l := range r.LUNs {
		if slices.Contains(l.Initiators, who) {
			g = append(g, mask.Grant{LUN: uint16(l.Number), ReadOnly: l.access(who) != readWrite})
		}
	}
	return g
}

package open_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/open"
)

// TestLUKSIsTold: what is encrypted is named, its place with it, and stays a
// volume that can be read as it is.
func TestLUKSIsTold(t *testing.T) {
	disk := memory(bytes.Clone(image(t, "lvm-o2-thick-gpt-crash")))
	p1 := int64(0)
	for _, p := range probe(t, disk).Disks[0].Table.Partitions {
		if p.Number == 1 {
			p1 = p.Off
		}
	}
	copy(disk[p1:], "LUKS\xba\xbe\x00\x02")
	c := probe(t, disk)
	var fe *lun.FormatError
	if len(c.Warnings) != 1 || !errors.As(c.Warnings[0], &fe) || fe.Format != "luks" || fe.Offset != p1 || len(c.Encrypted) != 1 || len(c.Groups) != 1 {
		t.Errorf("warnings %v, groups %v", c.Warnings, c.Groups)
	}
	if _, err := c.Volume("vg0/inside"); !errors.Is(err, open.ErrNotFound) || !strings.Contains(err.Error(), "p1: luks") {
		t.Errorf("a volume that may be inside: %v", err)
	}
	v, err := c.Volume("p1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Open(); err != nil {
		t.Errorf("the partition as it is: %v", err)
	}
	whole := make(memory, 1<<20)
	copy(whole, "LUKS\xba\xbe\x00\x01")
	if c := probe(t, whole); len(c.Encrypted) != 1 || !strings.Contains(c.Encrypted[0].Error(), "disk: luks") {
		t.Errorf("a whole disk: %v", c.Encrypted)
	}
}

package rbd

import (
	"strings"
	"testing"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

func TestNames(t *testing.T) {
	for _, id := range []driver.SnapshotID{"p/i@cleave-t", "p/n/i@cleave-t"} {
		s, err := parseSnap(id)
		if err != nil || s.id() != id || s.tag() != "t" {
			t.Errorf("%s: %+v, %v", id, s, err)
		}
	}
	for _, id := range []driver.SnapshotID{"", "p", "p/i", "p/i@s", "p//i@cleave-t", "p/i@cleave-t@u", "a/b/c/d@cleave-t", "p/i:conf=x@cleave-t", "p/i @cleave-t"} {
		if s, err := parseSnap(id); err == nil {
			t.Errorf("%q: %+v", id, s)
		}
	}
	s, _ := parseSnap(driver.SnapshotID("p/i@cleave-" + strings.Repeat("t", 63)))
	if b := s.before(); len(b) > 63 || b == s.tag() {
		t.Errorf("%q before %q", b, s.tag())
	}
}

func TestRegionsAreJoined(t *testing.T) {
	got := joined([]lun.Extent{{Off: 0, Len: 4}, {Off: 4, Len: 4}, {Off: 6, Len: 1}, {Off: 10, Len: 1}})
	if len(got) != 2 || got[0] != (lun.Extent{Off: 0, Len: 8}) || got[1] != (lun.Extent{Off: 10, Len: 1}) {
		t.Errorf("%v", got)
	}
}

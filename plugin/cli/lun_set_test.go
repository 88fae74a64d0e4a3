package cli

import (
	"context"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/orchestrator"
)

// oneSet is a control plane that has one set.
type oneSet struct {
	Control
	set orchestrator.Set
}

func (s oneSet) Get(_ context.Context, id orchestrator.SetID) (orchestrator.Set, error) {
	if id != s.set.ID {
		return orchestrator.Set{}, orchestrator.ErrNotFound
	}
	return s.set, nil
}
func (oneSet) Close() error { return nil }

func TestDisksOfSets(t *testing.T) {
	const id = "set-0123456789abcdef"
	set := orchestrator.Set{ID: id, LUNs: []orchestrator.LUN{
		{Name: id + "/db/vda", Clean: true, Socket: "/run/v i.sock", Export: "disk 1", NAA: "naa.3a"},
		{Name: id + "/db/vda/split", Portals: []string{"192.0.2.1:3260"}, IQN: "iqn.2026-01.test:a", LUN: 3},
		{Name: id + "/db/vdb/split"},
	}}
	a := &app{parts: Parts{Service: func(string) Control { return oneSet{set: set} }}}
	view := "nbd+unix:///disk%201?socket=%2Frun%2Fv+i.sock"
	for _, tc := range []struct{ paths, want, refused string }{
		{"a.img /dev/sdx", "a.img /dev/sdx", ""},
		{"./" + id + "/db/vda", "./" + id + "/db/vda", ""},
		{"set-12/db/vda", "set-12/db/vda", ""},
		{id + "/db/vda " + id + "/db/vda/split", view + " iscsi://192.0.2.1:3260/iqn.2026-01.test:a/3", ""},
		{id + "/db/vdb/split", "", "it is not served"},
		{id + "/db/vdz", "", "not found"},
		{"set-ffffffffffffffff/db/vda", "", "not found"},
		{id + "/db/vda a.img", "", "don't go together"},
		{"a.img " + id + "/db/vda", "", "don't go together"},
	} {
		got, ids, err := a.disksOfSets(t.Context(), strings.Fields(tc.paths))
		if tc.refused != "" {
			if err == nil || !strings.Contains(err.Error(), tc.refused) {
				t.Errorf("%s: %v, want %q", tc.paths, err, tc.refused)
			}
			continue
		}
		if err != nil || strings.Join(got, " ") != tc.want {
			t.Errorf("%s: %q, %v", tc.paths, got, err)
		}
		if (ids != nil) != strings.HasPrefix(tc.paths, id) || ids != nil && ids[view] != "naa.3a" {
			t.Errorf("%s: identities %q", tc.paths, ids)
		}
	}
	src, err := a.sources(t.Context(), &sourceFlags{}, []string{id + "/db/vda"})
	if err != nil || !src.Raw {
		t.Errorf("a set's disk would be looked at as a container: %+v, %v", src, err)
	}
}

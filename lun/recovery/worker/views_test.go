package worker

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/nbd"
)

func TestViews(t *testing.T) {
	dev := image(t, "lvm-o1-thick-4k")
	v := &Views{Dir: filepath.Join(t.TempDir(), "v")}
	name := "set 1/vm ü/../disk"
	s := Spec{Sources: []Source{{Name: "disk", Device: dev}}, Limits: Limits{Memory: memory}}
	for range 2 { // the second takes the first one's place
		socket, r, err := v.Start(t.Context(), name, s)
		if err != nil {
			t.Fatal(err)
		}
		c, err := nbd.Dial(t.Context(), "unix", socket, nbd.ClientOptions{Export: r.Exports[0].Name})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.WriteAt(make([]byte, 4096), 0); err != nil {
			t.Error(err)
		}
		c.Close()
	}
	// Another process would find it by the directory alone.
	other := &Views{Dir: v.Dir}
	if names, err := other.Names(); err != nil || !slices.Equal(names, []string{name}) {
		t.Errorf("names %q, %v", names, err)
	}
	for range 2 {
		if err := other.Stop(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(v.Dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	s.Sources[0].Device = noFile{lun.Device(dev)}
	if _, _, err := v.Start(t.Context(), name, s); err == nil {
		t.Error("a view that needs this process was detached")
	}
}

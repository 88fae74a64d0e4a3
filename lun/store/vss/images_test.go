package vss_test

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"path/filepath"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/store/vss"
	"github.com/cleave-san/cleave/lun/vdisk"
	"github.com/cleave-san/cleave/lun/vdisk/qcow2"
)

// oracles are the sums that vshadowmount 20190323 gave of each shadow copy.
var oracles = map[string][]string{
	"vsstest": {"c8ada35c641a68447640b250f35e623b7f619aaae26bd55a06b8d4c34ebed1da", "41f940d92a534dd8e940a4983d2a766bcb262373f9dc2006851e81fa3a1fa2f2"},
	"vss-synth-3": {"ab5c3d0610c5bed17eb2adab5b50ea1efd819c146b5a5e2f7c51794d3e7b17ad", "c58012806791f20da6b391069a6d03edd8243233925e83931904f05108c572c3",
		"131672856575b145ad5041787f84508d51075fa57c3da6479445ae54c291653b", "7b9e2504bbfa4a29a25ee1a342829a4c2f5874be2458cfd75c97c6138e10c6d2"},
	"vss-synth-7": {"6f442814f8375eb3a5e2065825c25741ef6ecfb004f0c94dceea9065b5ed5223", "62f684408207b9285ce98c4dd39e1bf26b9b353cdebb0d2e37f96cba49fe231a",
		"13c4f11ff57a2ca5b40a8c1325ef1e5494b425b9a947cad355e09747a0111e66"},
	"vss-synth-14": {"d0a20991eb4e83bde342b2d4665e3303fda19a0347b585e1708564f554ff96f3"},
	"vss-synth-22": {"cbc88add199457a2a0689374bd096eaea66a309f9fa29177018add3f5b10b922", "4ff9c427c243e93c7e602b3f68ffa61065fc9d68e5221f802d64634b2fe01bc5"},
}

func image(t testing.TB, name string) lun.Device {
	t.Helper()
	if name != "vsstest" {
		return luntest.Image(t, name)
	}
	dir, err := luntest.Testdata()
	if err != nil {
		t.Fatal(err)
	}
	f, err := open.File(filepath.Join(dir, "vsstest.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	d, err := qcow2.Open(f, vdisk.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func sum(t testing.TB, d lun.Device) string {
	t.Helper()
	h := sha256.New()
	if _, err := io.CopyBuffer(h, io.NewSectionReader(d, 0, d.Size()), make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// TestOracles reads all shadow copies of all images.
func TestOracles(t *testing.T) {
	for name, want := range oracles {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dev := image(t, name)
			v, err := vss.Read(dev)
			if err != nil {
				t.Fatal(err)
			}
			if len(v.Copies) != len(want) {
				t.Fatalf("%d shadow copies, want %d", len(v.Copies), len(want))
			}
			for i, c := range v.Copies {
				s, err := v.Open(c)
				if err != nil {
					t.Fatal(err)
				}
				if got := sum(t, s); got != want[i] {
					t.Errorf("vss%d: %s, want %s", i+1, got, want[i])
				}
				t.Logf("vss%d: %d blocks, %d bytes of holes", i+1, s.Blocks, luntest.CheckMap(t, s, 0, s.Size()))
			}
		})
	}
}

// TestDescription compares with what vshadowinfo prints of the real volume.
func TestDescription(t *testing.T) {
	v, err := vss.Read(image(t, "vsstest"))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct{ store, set, created, id string }{
		{"600f0b69-5bdf-11e3-9d6c-005056c00008", "0a4e3901-6abb-48fc-95c2-6ab9e38e9e71", "2013-12-03T06:35:09.7363787Z", "4e3c03c2-7bc6-4288-ad96-c1eac1a55f71"},
		{"600f0b6d-5bdf-11e3-9d6c-005056c00008", "8438a0ee-0f06-443b-ac0c-2905647ca5d6", "2013-12-03T06:37:48.9190583Z", "18f1ac6e-959d-436f-bdcc-e797a729e290"},
	} {
		c := v.Copies[i]
		if c.Store != want.store || c.Set != want.set || c.Created.Format("2006-01-02T15:04:05.9999999Z07:00") != want.created || c.ID != want.id || c.Size != 1<<30 || c.Attributes != 0x420009 {
			t.Errorf("%+v, want %+v", c, want)
		}
		if v.Find(want.id) != c || v.Find(want.store) != c {
			t.Errorf("copy %d is not found by its GUIDs", i+1)
		}
		t.Logf("%+v of %+v", c, v)
	}
}

package recovery_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/store/lvm2"
)

// TestHostLVMSeesTheOriginalAndTheCopy gives both to LVM's own tools at once:
// two groups, whole, and no word of duplicates.
func TestHostLVMSeesTheOriginalAndTheCopy(t *testing.T) {
	vgs, pvs, losetup, pvck := tool(t, "vgs", "lvm2"), tool(t, "pvs", "lvm2"), tool(t, "losetup", "mount"), tool(t, "pvck", "lvm2")
	for _, tc := range renewing {
		t.Run(tc.images[0], func(t *testing.T) {
			c := probe(t, images(t, tc.images...)...)
			v := renewedView(t, c, "one", tc.choose...)
			var both, loops []string
			for i, name := range tc.images {
				path := materialise(t, v.Clean[i])
				both = append(both, unpack(t, name), path)
				if pvStart[name] == 0 {
					out, err := exec.Command(pvck, "--dump", "headers", path).CombinedOutput()
					if err != nil || bytes.Contains(out, []byte("CHECK")) {
						t.Errorf("pvck --dump headers: %v\n%s", err, out)
					}
				} else {
					tablesVerify(t, path)
				}
			}
			for i, path := range both {
				loops = append(loops, loop(t, losetup, path, pvStart[tc.images[i/2]]))
			}
			args := []string{"--config", lvmConfig(loops), "--reportformat", "json", "-o"}
			groups := lvmReport(t, "vg", quiet(t, vgs, append(args, "vg_name,vg_uuid,pv_count,vg_missing_pv_count")...))
			names := map[string]string{}
			for _, g := range groups {
				names[g["vg_name"]] = g["vg_uuid"]
				if g["pv_count"] != fmt.Sprint(len(tc.images)) || g["vg_missing_pv_count"] != "0" {
					t.Errorf("%v", g)
				}
			}
			g := shown(t, v.Clean).Groups[0]
			if len(groups) != 2 || names[c.Groups[0].Name] != c.Groups[0].UUID || names[g.Name] != g.UUID {
				t.Errorf("vgs lists %v, want %s and %s", groups, c.Groups[0].Name, g.Name)
			}
			seen := map[string]bool{}
			for _, p := range lvmReport(t, "pv", quiet(t, pvs, append(args, "pv_uuid,pv_name,vg_name")...)) {
				seen[p["pv_uuid"]] = true
			}
			if len(seen) != len(loops) {
				t.Errorf("pvs lists %d of %d", len(seen), len(loops))
			}
		})
	}
}

// quiet runs a tool that must have nothing to complain of.
func quiet(t *testing.T, name string, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LVM_SUPPRESS_FD_WARNINGS=1")
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil || errs.Len() > 0 {
		t.Fatalf("%s: %v\n%s", name, err, errs.Bytes())
	}
	return out.String()
}

// tablesVerify has partitioning tools check a disk.
func tablesVerify(t *testing.T, path string) {
	t.Helper()
	quiet(t, tool(t, "sfdisk", "fdisk"), "--verify", path)
	if out := quiet(t, tool(t, "sgdisk", "gdisk"), "-v", path); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk -v:\n%s", out)
	}
}

// TestFileSystemsOfTheCopyAreClean: e2fsck has nothing to do in it.
func TestFileSystemsOfTheCopyAreClean(t *testing.T) {
	e2fsck := tool(t, "e2fsck", "e2fsprogs")
	for _, tc := range renewing {
		if tc.volume == "str" {
			continue // holds no file system
		}
		v := renewedView(t, probe(t, images(t, tc.images...)...), "one", tc.choose...)
		c := shown(t, v.Devices)
		vol, err := c.Volume(c.Groups[0].Name + "/" + tc.volume)
		if err != nil {
			t.Fatal(err)
		}
		d, err := vol.Open()
		if err != nil {
			t.Fatal(err)
		}
		run(t, e2fsck, "-fn", materialise(t, d))
	}
}

// TestNewIdentityIsThatOfVgimportclone lets LVM's own tool give the recovered
// disks another identity: it changes in labels and metadata what we change, and
// nothing else.
func TestNewIdentityIsThatOfVgimportclone(t *testing.T) {
	vgimportclone, losetup := tool(t, "vgimportclone", "lvm2"), tool(t, "losetup", "mount")
	for _, tc := range renewing {
		if pvStart[tc.images[0]] > 0 {
			continue // its PV is a partition, for which there is no node
		}
		t.Run(tc.images[0], func(t *testing.T) {
			c := probe(t, images(t, tc.images...)...)
			ours := shown(t, renewedView(t, c, "one", tc.choose...).Clean).Groups[0]
			var files, loops []string
			for _, d := range openView(t, c, tc.choose...).Clean {
				files = append(files, materialise(t, d))
				loops = append(loops, attach(t, losetup, files[len(files)-1]))
			}
			quiet(t, vgimportclone, append([]string{"--config", lvmConfig(loops), "-n", "imported"}, loops...)...)
			var made []open.Source
			for _, f := range files {
				made = append(made, source(t, f))
			}
			theirs := probe(t, made...).Groups[0]
			if theirs.Name != "imported" || theirs.UUID == c.Groups[0].UUID || theirs.PVs[0].UUID == c.Groups[0].PVs[0].UUID {
				t.Fatalf("vgimportclone made %s of it", theirs.Name)
			}
			if got, want := unnamed(t, ours), unnamed(t, theirs); got != want {
				t.Errorf("our text is\n%s\nvgimportclone's is\n%s", got, want)
			}
			for i, pv := range ours.PVs {
				a, b := pv.PV, theirs.PVs[i].PV
				if a.Off != b.Off || a.DevSize != b.DevSize || a.InUse != b.InUse || len(a.MDAs) != len(b.MDAs) {
					t.Errorf("our PV is %+v, vgimportclone's %+v", a, b)
				}
			}
		})
	}
}

// unnamed is a group's metadata without what is of its identity and of who wrote
// it when.
func unnamed(t *testing.T, g *lvm2.Group) string {
	t.Helper()
	s, err := lvm2.ParseText(g.PVs[0].PV.MDAs[0].Text)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{g.Name + " {", "VG {", g.UUID, "VG"}
	for _, pv := range g.PVs {
		names = append(names, pv.UUID, pv.Name)
	}
	var out strings.Builder
	for line := range strings.Lines(strings.NewReplacer(names...).Replace(string(s.Text()))) {
		switch key, _, _ := strings.Cut(line, " = "); key {
		case "seqno", "device", "description", "creation_host", "creation_time":
		default:
			out.WriteString(line)
		}
	}
	return out.String()
}

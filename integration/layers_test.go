// Package integration holds the labs, and the test of the house's arrows.
package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/cleave-san/cleave"

// arrows says what of ours a package may import: the first line whose pattern
// fits is the rule. A pattern is a path, or a path with "/..." for it and all
// below it; "" allows nothing. A new arrow is added here on purpose, after the
// architecture part of the README.
var arrows = []struct{ from, to string }{
	// Nouns: everyone may hold them, they hold nobody.
	{"lun", ""},
	{"iscsi", ""},
	{"orchestrator", ""},
	{"orchestrator/guest/wire", ""},
	{"arrays/driver", "lun"},

	// Devices and formats know neither arrays nor protocols.
	{"lun/...", "lun/..."},
	// An array is not reached by iSCSI code, nor the other way: a volume is a
	// lun.Device, and the engine hands it over.
	{"arrays", "arrays/driver lun"},
	{"arrays/embedded/remote", "arrays/driver lun lun/nbd"},            // a snapshot to be written comes as NBD
	{"arrays/rbd", "arrays arrays/driver arrays/localdev lun lun/nbd"}, // qemu-storage-daemon serves images as NBD
	{"arrays/embedded/disk", "lun lun/extents"},
	{"arrays/...", "arrays arrays/... lun"},
	{"iscsi/...", "iscsi iscsi/... lun lun/..."},

	// The orchestrator's pure parts.
	{"orchestrator/machine", "orchestrator"},
	{"orchestrator/classify", "orchestrator orchestrator/guest/wire"},
	{"orchestrator/journal", "orchestrator orchestrator/machine"},
	{"orchestrator/setdoc", "orchestrator orchestrator/guest/wire"},
	{"orchestrator/guest/agent", "orchestrator/guest/wire orchestrator/guest/app"},
	{"orchestrator/guest/app", "orchestrator/guest/wire"},
	{"orchestrator/guest/...", "orchestrator orchestrator/writer orchestrator/guest/..."},
	{"orchestrator/writer", "orchestrator orchestrator/guest/wire"},
	{"orchestrator/writer/...", "orchestrator orchestrator/writer orchestrator/writer/... orchestrator/guest/..."},
	{"orchestrator/hostvolume", ""},
	{"orchestrator/engine", "orchestrator orchestrator/hostvolume orchestrator/machine orchestrator/journal orchestrator/classify orchestrator/setdoc " +
		"orchestrator/writer orchestrator/guest/... arrays arrays/driver iscsi iscsi/... lun lun/..."},

	// Doors see nouns and services; who stands behind them is assemble's affair.
	{"plugin/demo/guestload", ""},
	{"plugin/cmd/...", "plugin/..."},
	{"plugin/assemble", "plugin/... orchestrator orchestrator/... arrays arrays/... iscsi iscsi/... lun lun/..."},
	// `cleave array`: the embedded array behind the target, and nothing that plans.
	{"plugin/dataplane", "arrays arrays/driver arrays/embedded arrays/embedded/... iscsi iscsi/... lun lun/..."},
	{"plugin/demo/...", "plugin/... orchestrator orchestrator/... arrays arrays/... iscsi iscsi/... lun lun/... integration/lab integration/stage"},
	{"plugin/cli", "plugin/api orchestrator arrays arrays/driver iscsi lun lun/open lun/recovery lun/fs lun/fs/copyout"},
	{"plugin/...", "plugin/api orchestrator arrays arrays/driver iscsi lun"},

	{"integration/results", ""},
	{"integration/lab/...", "integration/lab integration/results"},
	{"integration/bench", "integration/results"},
	{"integration/...", "..."},
}

// homes are the packages that may import a library outside tests; a library
// without a line may be imported anywhere.
var homes = []struct{ library, by string }{
	{"go.opentelemetry.io/otel/sdk", "plugin/assemble"},
	{"go.opentelemetry.io/otel/exporters", "plugin/assemble"},
	{"github.com/spf13", "plugin/cli plugin/demo plugin/cmd/... integration/..."},
	{"github.com/vbauerster/mpb", "plugin/cli"},
	{"github.com/knadh/koanf", "plugin/assemble plugin/cli plugin/cmd/..."},
	{"go.etcd.io/bbolt", "orchestrator/journal"},
	{"github.com/gophercloud", "arrays/cinder"},
	{"github.com/vmware/govmomi", "orchestrator/writer/vsphere integration/..."},
	{"github.com/gostor/gotgt", "integration/foreignarray/..."},
	{"go.uber.org/goleak", "arrays/arraytest orchestrator/writer/writertest integration/..."},
	{"pgregory.net/rapid", "arrays/arraytest orchestrator/writer/writertest integration/..."},
	{"github.com/google/go-cmp", "arrays/arraytest orchestrator/writer/writertest integration/..."},
	{"github.com/rogpeppe/go-internal", "integration/..."},
}

// standardOnly are packages whose users must not get any library with them.
var standardOnly = []string{"lun", "iscsi", "orchestrator", "orchestrator/guest/wire", "arrays/driver"}

// fits reports whether path is in a list of patterns separated by spaces.
func fits(path, patterns string) bool {
	return slices.ContainsFunc(strings.Fields(patterns), func(p string) bool {
		base, below := strings.CutSuffix(p, "...")
		if !below {
			return path == p
		}
		return strings.HasPrefix(path+"/", base)
	})
}

// wrong returns what is wrong with a package of ours that imports these.
func wrong(path string, imports []string) []string {
	var bad []string
	i := slices.IndexFunc(arrows, func(a struct{ from, to string }) bool { return fits(path, a.from) })
	if i < 0 {
		bad = append(bad, fmt.Sprintf("%s has no place in the house: give it a line in arrows", path))
	}
	for _, imp := range imports {
		ours, isOurs := strings.CutPrefix(imp, module+"/")
		switch {
		case isOurs && i >= 0 && !fits(ours, arrows[i].to):
			bad = append(bad, fmt.Sprintf("%s must not import %s", path, ours))
		case isOurs && strings.HasSuffix(ours, "test") && !strings.HasSuffix(path, "test") && !fits(path, "integration/..."):
			bad = append(bad, fmt.Sprintf("%s imports the test package %s outside its tests", path, ours))
		case !isOurs && strings.Contains(imp, ".") && slices.Contains(standardOnly, path):
			bad = append(bad, fmt.Sprintf("%s must not import %s: only the standard library", path, imp))
		}
		for _, h := range homes {
			if (imp == h.library || strings.HasPrefix(imp, h.library+"/")) && !fits(path, h.by) {
				bad = append(bad, fmt.Sprintf("%s must not import %s, whose home is %s", path, imp, h.by))
			}
		}
	}
	return bad
}

// TestLayers reads every package's imports from the go command.
func TestLayers(t *testing.T) {
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports", module+"/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, stderr.Bytes())
	}
	n := 0
	for d := json.NewDecoder(bytes.NewReader(out)); ; n++ {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		for _, bad := range wrong(strings.TrimPrefix(p.ImportPath, module+"/"), p.Imports) {
			t.Error(bad)
		}
	}
	if n < 10 {
		t.Errorf("go list knows %d packages only", n)
	}
}

// TestLayersCanFail has each kind of wrong arrow refused.
func TestLayersCanFail(t *testing.T) {
	for _, c := range []struct{ from, imports, want string }{
		{"lun", module + "/lun/open", "lun must not import lun/open"},
		{"lun", "golang.org/x/sys/unix", "only the standard library"},
		{"lun/open", module + "/arrays", "must not import arrays"},
		{"arrays/embedded", module + "/iscsi", "must not import iscsi"},
		{"iscsi/target", module + "/arrays/driver", "must not import arrays/driver"},
		{"orchestrator/engine", module + "/plugin/api", "must not import plugin/api"},
		{"orchestrator/engine", module + "/arrays/embedded", "must not import arrays/embedded"},
		{"orchestrator/guest/wire", module + "/orchestrator", "must not import orchestrator"},
		{"orchestrator/machine", module + "/orchestrator/journal", "must not import orchestrator/journal"},
		{"plugin/api", module + "/orchestrator/engine", "must not import orchestrator/engine"},
		{"plugin/api", "github.com/spf13/pflag", "whose home is plugin/cli"},
		{"orchestrator/engine", "go.opentelemetry.io/otel/sdk/trace", "whose home is plugin/assemble"},
		{"arrays/embedded", module + "/arrays/arraytest", "outside its tests"},
		{"strange", "fmt", "has no place in the house"},
	} {
		if bad := strings.Join(wrong(c.from, []string{c.imports}), "; "); !strings.Contains(bad, c.want) {
			t.Errorf("%s importing %s: %q, want %q", c.from, c.imports, bad, c.want)
		}
	}
	for _, c := range [][2]string{
		{"orchestrator/engine", module + "/arrays"}, {"orchestrator/engine", "go.opentelemetry.io/otel/trace"},
		{"iscsi/target", module + "/lun"}, {"lun/open", module + "/lun/store/lvm2"}, {"plugin/cmd/cleave", module + "/plugin/assemble"},
	} {
		if bad := wrong(c[0], []string{c[1]}); bad != nil {
			t.Errorf("%s importing %s: %q", c[0], c[1], bad)
		}
	}
}

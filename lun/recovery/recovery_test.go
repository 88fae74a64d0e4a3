package recovery_test

import (
	"context"
	"encoding/hex"
	"testing"

	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
)

// oracles are the SHA-256 sums that the guest's own kernel printed when it read
// the devices; see lun/testdata/README.md.
var oracles = []struct {
	images []string
	volume string
	sum    string
}{
	{[]string{"lvm-o1-thick-4k"}, "vgo1/snap", "f5cf5ccee67535499a4ed3b24ca9a38a84aeb3bdc9e84554e054310145dbe23f"},
	{[]string{"lvm-o1-thick-4k"}, "vgo1/root", "73c24e9123a4f52696c099f70d6865013bcf465d0f373891fe32dbe041542464"},
	{[]string{"lvm-o2-thick-gpt-crash"}, "vgo2/snap1", "853a2eff3d3a2ce0a15ea08ad22018d907c6121d6ff7a15ee3d71e81eb00ffb0"},
	{[]string{"lvm-o2-thick-gpt-crash"}, "vgo2/snap2", "d85dd205b2e651c526f42e8676d06631f56ca8432a0a561df48dc87bd6554a02"},
	{[]string{"lvm-o3-thin"}, "vgo3/tsnap", "d827e7b2a10cdbe4c7c45bcd133c91a2efdc4f1ffeb4dee82f12cac22f8524c7"},
	{[]string{"lvm-o3-thin"}, "vgo3/tvol", "1bc7c1986e81c84934c941a184f0d7c20f9864e27b09797f30de81a085ffacb4"},
	{[]string{"lvm-o4-a", "lvm-o4-b"}, "vgo4/good", "d5b583b019a19187dd4aa6a1b6b42055552eeb29900dbf73ade4ee54ba2bf522"},
	{[]string{"lvm-o4-a", "lvm-o4-b"}, "vgo4/str", "e4c07544f9a39fe72115417e0c9282544bbd3c3d570c62884560e04a92a6ed6d"},
	{[]string{"lvm-g1-thin-a", "lvm-g1-thin-b"}, "vgt/ext", "8bc992a1a6c92e5a919a1251e8b7ddf2a6c9a9fa1d84bb3d9cbb3f4674031413"},
	{[]string{"lvm-g1-thin-a", "lvm-g1-thin-b"}, "vgt/onext", "9576533159212e90431567013f3ab6aa5ae4cdb57a987118d3e995f3bd58db4d"},
	{[]string{"lvm-g1-thin-a", "lvm-g1-thin-b"}, "vgt/other", "2daeb1f36095b44b318410b3f4e8b5d989dcc7bb023d1426c492dab0a3053e74"},
	{[]string{"lvm-g1-thin-a", "lvm-g1-thin-b"}, "vgt/s1", "a4f6478dfec8e1a3481629c0cff8201168a5279ee1cfe19fc1d914431fb59bbd"},
	{[]string{"lvm-g1-thin-a", "lvm-g1-thin-b"}, "vgt/s2", "95debb6b0a2ced6d93c7e7e9e349f183c763dd62827c8cbd9f8c75b827267890"},
	{[]string{"lvm-g1-thin-a", "lvm-g1-thin-b"}, "vgt/s3", "01c9e27a5cae64f99a337085315936c634a987df7d7f4eee2ab972c12fa79e47"},
	{[]string{"lvm-g2-mirrors-a", "lvm-g2-mirrors-b", "lvm-g2-mirrors-c"}, "vgm/m1", "b4dea2068ec959aa2249b1d245fcc2bcb706cc9f13b3588ddd288845e6ae5e7c"},
	{[]string{"lvm-g2-mirrors-a", "lvm-g2-mirrors-b", "lvm-g2-mirrors-c"}, "vgm/r1", "4c5edc731d972a631fd01792ba20e089a23c4b714cfae859f74d857d2333af88"},
	{[]string{"lvm-g2-mirrors-a", "lvm-g2-mirrors-b", "lvm-g2-mirrors-c"}, "vgm/r2", "a002aa2b391a763967ff2d9aa7d31388be3002ca47670ca70c8ed28cc41c1f25"},
	{[]string{"lvm-o5-wrap"}, "vgo1/snap", "f5cf5ccee67535499a4ed3b24ca9a38a84aeb3bdc9e84554e054310145dbe23f"},
	{[]string{"lvm-o5-wrap"}, "vgo1/root", "73c24e9123a4f52696c099f70d6865013bcf465d0f373891fe32dbe041542464"},
}

func TestVolumesEqualWhatTheGuestKernelRead(t *testing.T) {
	for _, o := range oracles {
		t.Run(o.images[0]+"/"+o.volume, func(t *testing.T) {
			c := probe(t, images(t, o.images...)...)
			if got := sum(t, c, o.volume); got != o.sum {
				t.Errorf("sha256 of %s = %s, the guest's kernel read %s", o.volume, got, o.sum)
			}
		})
	}
}

func sum(t *testing.T, c *open.Contents, name string) string {
	t.Helper()
	v, err := c.Volume(name)
	if err != nil {
		t.Fatal(err)
	}
	d, err := v.Open()
	if err != nil {
		t.Fatal(err)
	}
	s, err := recovery.Sum(context.Background(), d, nil)
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(s[:])
}

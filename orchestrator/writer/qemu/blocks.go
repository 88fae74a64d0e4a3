package qemu

import (
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/cleave-san/cleave/orchestrator"
)

// block is an element of query-block (BlockInfo, qapi/block-core.json).
type block struct {
	Device   string    `json:"device"`
	QDev     string    `json:"qdev"`
	Inserted *inserted `json:"inserted"`
}

// inserted is BlockDeviceInfo.
type inserted struct {
	File    string `json:"file"`
	Node    string `json:"node-name"`
	Driver  string `json:"drv"`
	RO      bool   `json:"ro"`
	Backing string `json:"backing_file"`
	Cache   cache  `json:"cache"`
	Image   struct {
		Size    int64           `json:"virtual-size"`
		Backing json.RawMessage `json:"backing-image"`
	} `json:"image"`
}

// node is an element of query-named-block-nodes.
type node struct {
	Name   string `json:"node-name"`
	Driver string `json:"drv"`
	File   string `json:"file"`
	Cache  cache  `json:"cache"`
}

// cache is BlockdevCacheInfo.
type cache struct {
	Writeback bool `json:"writeback"`
	Direct    bool `json:"direct"`
	NoFlush   bool `json:"no-flush"`
}

// mode is the name that QEMU's -drive cache= has for it (qemu(1)).
func (c cache) mode() string {
	switch {
	case c.NoFlush:
		return "unsafe"
	case c.Writeback && c.Direct:
		return "none"
	case c.Writeback:
		return "writeback"
	case c.Direct:
		return "directsync"
	}
	return "writethrough"
}

// disks makes disks of what QEMU's block layer says, and names what it could
// not understand. A drive without a medium is no disk, nor is the flash that
// holds the firmware and its variables.
func disks(blocks []block, nodes []node) (disks []orchestrator.Disk, problems []string) {
	for _, b := range blocks {
		if b.Inserted == nil || strings.HasPrefix(b.QDev, "/machine/system.flash") {
			continue
		}
		d := orchestrator.Disk{
			Device:   deviceName(b),
			Format:   format(b.Inserted.Driver),
			Size:     b.Inserted.Image.Size,
			ReadOnly: b.Inserted.RO,
		}
		where, err := locate(b.Inserted.File)
		if d.Backing = clip(b.Inserted.Backing); d.Backing == "" && len(b.Inserted.Image.Backing) > 0 {
			d.Backing = "another node"
		}
		if err != nil {
			problems = append(problems, fmt.Sprintf("disk %s: %v", d.Device, err))
		} else {
			d.IQN, d.LUN, d.Portal, d.Path = where.iqn, where.lun, where.portal, where.path
			d.Initiator = clip(where.initiator)
		}
		c := b.Inserted.Cache
		// Each layer has flags of its own, and one that drops flushes is enough.
		for _, n := range nodes {
			if n.Name == b.Inserted.Node || sameMedium(n.File, b.Inserted.File) {
				c.NoFlush = c.NoFlush || n.Cache.NoFlush
			}
		}
		d.Cache = c.mode()
		disks = append(disks, d)
	}
	return disks, problems
}

// format is what a disk's content is wrapped in. A disk that lies on a medium
// without a format between shows it as it is.
func format(driver string) string {
	switch driver {
	case "iscsi", "file", "host_device", "rbd":
		return "raw"
	}
	return clip(driver)
}

// deviceName is the id that whoever started the VM gave the disk, or the path
// of the device in QEMU's tree.
func deviceName(b block) string {
	if rest, ok := strings.CutPrefix(b.QDev, "/machine/peripheral/"); ok {
		id, _, _ := strings.Cut(rest, "/")
		return clip(id)
	}
	switch {
	case b.QDev != "" && !strings.HasPrefix(b.QDev, "/"):
		return clip(b.QDev)
	case b.Device != "":
		return clip(b.Device)
	}
	return clip(b.QDev)
}

// place is where a block node's bytes lie.
type place struct {
	path   string // a file or device of this host, or rbd:pool/image
	portal string // host:port
	iqn    string
	lun    uint64
	// initiator is the name that QEMU logs in with, where it was told one.
	initiator string
}

// locate reads QEMU's name for a node: a path, a URL, or "json:{…}" with the
// options of a chain of drivers. What it does not know is an error.
func locate(file string) (place, error) {
	if len(file) > 4096 {
		return place{}, fmt.Errorf("a name of %d bytes", len(file))
	}
	if text, ok := strings.CutPrefix(file, "json:"); ok {
		var o map[string]any
		if err := json.Unmarshal([]byte(text), &o); err != nil {
			return place{}, fmt.Errorf("QEMU calls its medium %.100q: %w", file, err)
		}
		return locateOptions(o, 0)
	}
	if strings.HasPrefix(file, "iscsi://") {
		return locateURL(file)
	}
	switch {
	case strings.HasPrefix(file, "/"):
		return place{path: file}, nil
	case file == "":
		return place{}, fmt.Errorf("QEMU has no name for its medium")
	case strings.HasPrefix(file, "file:/"):
		return place{path: strings.TrimPrefix(file, "file:")}, nil
	}
	return place{}, fmt.Errorf("QEMU calls its medium %.100q, which is neither an absolute path nor an iSCSI LUN", file)
}

// maxChain bounds how many drivers may lie on one another.
const maxChain = 16

func locateOptions(o map[string]any, depth int) (place, error) {
	driver, _ := o["driver"].(string)
	text := func(key string) string { s, _ := o[key].(string); return s }
	switch driver {
	case "file", "host_device", "host_cdrom":
		if p := text("filename"); strings.HasPrefix(p, "/") {
			return place{path: p}, nil
		}
		return place{}, fmt.Errorf("driver %s with the file name %.100q, which is not absolute", driver, text("filename"))
	case "iscsi":
		lun := uint64(0) // QEMU's default
		switch v := o["lun"].(type) {
		case nil:
		case float64:
			lun = uint64(v)
			if v < 0 || float64(lun) != v {
				return place{}, fmt.Errorf("iSCSI LUN %v is no number of a LUN", v)
			}
		case string:
			n, err := strconv.ParseUint(v, 10, 64)
			if err != nil {
				return place{}, fmt.Errorf("iSCSI LUN %.40q is no number of a LUN", v)
			}
			lun = n
		default:
			return place{}, fmt.Errorf("iSCSI LUN %v is no number of a LUN", v)
		}
		if t := text("transport"); t != "" && t != "tcp" {
			return place{}, fmt.Errorf("iSCSI over %.40q", t)
		}
		p, err := newLUN(text("portal"), text("target"), lun)
		if err == nil {
			p.initiator = strings.ToLower(text("initiator-name"))
		}
		return p, err
	case "rbd":
		return locateImage(text("pool"), text("namespace"), text("image"), text("snapshot"))
	case "":
		return place{}, fmt.Errorf("a block node without a driver")
	}
	// A format or a filter: what matters is the node under it. One with an offset
	// shows a part only.
	if _, part := o["offset"]; part {
		return place{}, fmt.Errorf("it is a part of another device (driver %.40q with an offset)", driver)
	}
	under, ok := o["file"].(map[string]any)
	if !ok || depth >= maxChain {
		return place{}, fmt.Errorf("it lies on driver %.40q, which is not known here", driver)
	}
	return locateOptions(under, depth+1)
}

// locateURL reads iscsi://[user[%password]@]host[:port]/target/lun, where QEMU
// still says so.
func locateURL(s string) (place, error) {
	u, err := url.Parse(s)
	if err != nil { // the error would repeat the URL, and with it a password
		return place{}, fmt.Errorf("an iSCSI URL that can't be read")
	}
	target, lun, ok := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	n, err := strconv.ParseUint(lun, 10, 64)
	if !ok || err != nil {
		return place{}, fmt.Errorf("an iSCSI URL without target and LUN")
	}
	return newLUN(u.Host, target, n)
}

// locateImage is the place of an image of Ceph's, as rbd:pool/namespace/image.
func locateImage(pool, namespace, image, snapshot string) (place, error) {
	name := pool + "/" + image
	if namespace != "" {
		name = pool + "/" + namespace + "/" + image
	}
	for _, part := range []string{pool, namespace, image} {
		if strings.ContainsAny(part, "/@:\\") {
			return place{}, fmt.Errorf("the name of an RBD image (%.100q) that can't be told from others", name)
		}
	}
	switch {
	case pool == "" || image == "":
		return place{}, fmt.Errorf("an RBD image without pool or name (%.80q, %.80q)", pool, image)
	case snapshot != "":
		return place{}, fmt.Errorf("it is snapshot %.80q of RBD image %.80q, not the image", snapshot, name)
	}
	return place{path: "rbd:" + name}, nil
}

func newLUN(portal, target string, lun uint64) (place, error) {
	if portal == "" || target == "" || len(target) > 223 {
		return place{}, fmt.Errorf("an iSCSI LUN without portal or target (%.80q, %.80q)", portal, target)
	}
	if _, _, err := net.SplitHostPort(portal); err != nil {
		portal = net.JoinHostPort(strings.Trim(portal, "[]"), "3260")
	}
	return place{portal: portal, iqn: strings.ToLower(target), lun: lun}, nil
}

// sameMedium says whether two nodes have the same bytes under them, as far as
// their names tell. Different layers over one LUN have different names.
func sameMedium(a, b string) bool {
	if a == b {
		return true
	}
	x, errX := locate(a)
	y, errY := locate(b)
	return errX == nil && errY == nil && x == y
}

// clip bounds a name that QEMU gives.
func clip(s string) string {
	if len(s) > 200 {
		return s[:200]
	}
	return s
}

package qemu

import (
	"encoding/json"
	"testing"
)

func TestLocate(t *testing.T) {
	const iqn = "iqn.2026-11.test:vol"
	lun := place{portal: "127.0.0.1:3987", iqn: iqn, lun: 1}
	for file, want := range map[string]place{
		// As QEMU 7.2 names them.
		`json:{"driver": "raw", "file": {"lun": "1", "portal": "127.0.0.1:3987", "driver": "iscsi", "transport": "tcp", "target": "iqn.2026-11.test:vol"}}`: lun,
		`json:{"driver": "raw", "file": {"lun": 1, "portal": "127.0.0.1:3987", "driver": "iscsi", "transport": "tcp", "target": "iqn.2026-11.test:vol"}}`:   lun,
		`json:{"lun": 1, "portal": "127.0.0.1:3987", "driver": "iscsi", "transport": "tcp", "target": "iqn.2026-11.test:vol"}`:                              lun,
		`iscsi://127.0.0.1:3987/iqn.2026-11.test:vol/1`:                                                              lun,
		`iscsi://user%secret@127.0.0.1:3987/iqn.2026-11.test:vol/1`:                                                  {},
		`iscsi://[::1]/iqn.2026-11.test:vol/0`:                                                                       {portal: "[::1]:3260", iqn: iqn},
		`/dev/sdb`:                                                                                                   {path: "/dev/sdb"},
		`json:{"driver":"raw","file":{"driver":"host_device","filename":"/dev/sdb"}}`:                                {path: "/dev/sdb"},
		`json:{"driver":"qcow2","file":{"driver":"file","filename":"/a b"}}`:                                         {path: "/a b"},
		`json:{"driver":"raw","file":{"driver":"file","filename":"relative"}}`:                                       {},
		`json:{"driver":"raw","offset":4096,"file":{"driver":"file","filename":"/a"}}`:                               {},
		`json:{"driver":"raw","file":{"driver":"rbd","pool":"vms","image":"volume-1","conf":"/etc/ceph/ceph.conf"}}`: {path: "rbd:vms/volume-1"},
		`json:{"driver":"rbd","pool":"vms","namespace":"a","image":"x"}`:                                             {path: "rbd:vms/a/x"},
		`json:{"driver":"rbd","pool":"vms","image":"x","snapshot":"s"}`:                                              {},
		`json:{"driver":"rbd","pool":"vms","image":"a/x"}`:                                                           {},
		`json:{"driver":"rbd","pool":"vms"}`:                                                                         {},
		`json:{"driver":"nbd","host":"x"}`:                                                                           {},
		`json:{"driver":"iscsi","portal":"a:1","target":"iqn.x","lun":-1}`:                                           {},
		`json:{"driver":"iscsi","portal":"a:1","target":"iqn.x","lun":0.5}`:                                          {},
		`json:{"driver":"iscsi","target":"iqn.x","lun":0}`:                                                           {},
		`json:{"driver":"iscsi","transport":"iser","portal":"a:1","target":"iqn.x"}`:                                 {},
		`json:[`: {}, ``: {}, `relative.img`: {}, `nbd://host/x`: {},
	} {
		got, err := locate(file)
		if got != want || (err != nil) != (want == place{}) {
			t.Errorf("%s: %+v, %v", file, got, err)
		}
	}
}

func FuzzDisks(f *testing.F) {
	f.Add([]byte(`[{"device":"d","qdev":"/machine/peripheral/x/y","inserted":{"file":"json:{\"driver\":\"raw\",\"file\":{}}","drv":"raw"}}]`))
	f.Add([]byte(`[{"inserted":{"file":"iscsi://x/y/1","image":{"backing-image":{}}}}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var blocks []block
		var nodes []node
		if json.Unmarshal(b, &blocks) != nil {
			return
		}
		json.Unmarshal(b, &nodes)
		ds, problems := disks(blocks, nodes)
		for _, d := range ds {
			if d.Path == "" && d.IQN == "" && len(problems) == 0 {
				t.Errorf("%+v lies nowhere, and that is no problem", d)
			}
		}
	})
}

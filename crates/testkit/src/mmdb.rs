//! Country databases in the MMDB format, made by hand.

use ipnet::{IpNet, Ipv6Net};

/// The content of a database in which each network has the country that it is given with: two letters.
pub fn country_database(networks: &[(&str, &str)]) -> Vec<u8> {
    // by node, what a bit of 0 and of 1 lead to
    let mut tree: Vec<[Step; 2]> = vec![[Step::Nothing; 2]];
    let mut data = Vec::new();
    for (network, country) in networks {
        let offset = data.len();
        map(&mut data, 1);
        string(&mut data, "country");
        map(&mut data, 1);
        string(&mut data, "iso_code");
        string(&mut data, country);
        insert(&mut tree, network, offset);
    }
    let mut content = Vec::new();
    let nodes = tree.len();
    for step in tree.iter().flatten() {
        let value = match step {
            Step::Nothing => nodes,
            Step::Node(node) => *node,
            Step::Data(offset) => nodes + 16 + offset,
        };
        content
            .extend_from_slice(&u32::try_from(value).expect("a database for tests is small").to_be_bytes());
    }
    content.extend_from_slice(&[0; 16]);
    content.extend_from_slice(&data);
    content.extend_from_slice(b"\xab\xcd\xefMaxMind.com");
    map(&mut content, 9);
    for (name, value) in [
        ("binary_format_major_version", 2),
        ("binary_format_minor_version", 0),
        ("ip_version", 6),
        ("record_size", 32),
    ] {
        string(&mut content, name);
        content.extend_from_slice(&[5 << 5 | 2, 0, value]);
    }
    string(&mut content, "node_count");
    content.push(6 << 5 | 4);
    content.extend_from_slice(&u32::try_from(nodes).expect("a database for tests is small").to_be_bytes());
    string(&mut content, "build_epoch");
    content.extend_from_slice(&[1, 2, 1]);
    string(&mut content, "database_type");
    string(&mut content, "Test-Country");
    string(&mut content, "languages");
    content.extend_from_slice(&[0, 4]);
    string(&mut content, "description");
    map(&mut content, 0);
    content
}

#[derive(Clone, Copy)]
enum Step {
    Nothing,
    Node(usize),
    Data(usize),
}

fn insert(tree: &mut Vec<[Step; 2]>, network: &str, offset: usize) {
    let network = match network.parse().expect("a network") {
        // IPv4 is at the beginning of the tree
        IpNet::V4(v4) => Ipv6Net::new(u128::from(v4.network().to_bits()).into(), v4.prefix_len() + 96)
            .expect("96 and 32 are 128"),
        IpNet::V6(v6) => v6,
    };
    let (bits, length) = (network.network().to_bits(), network.prefix_len());
    let mut node = 0;
    for depth in 0..length {
        let bit = usize::from(bits >> (127 - depth) & 1 == 1);
        if depth + 1 == length {
            tree[node][bit] = Step::Data(offset);
            return;
        }
        node = match tree[node][bit] {
            Step::Node(next) => next,
            _ => {
                let next = tree.len();
                tree.push([Step::Nothing; 2]);
                tree[node][bit] = Step::Node(next);
                next
            }
        };
    }
}

fn map(out: &mut Vec<u8>, entries: u8) {
    out.push(7 << 5 | entries);
}

fn string(out: &mut Vec<u8>, text: &str) {
    let length = u8::try_from(text.len()).expect("texts here are short");
    assert!(length < 29, "{text}");
    out.push(2 << 5 | length);
    out.extend_from_slice(text.as_bytes());
}

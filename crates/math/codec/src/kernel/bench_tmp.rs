#[test]
#[ignore]
fn bench() {
    use super::*;
    let level = fearless_simd::Level::new();
    let mut s = 1u32;
    let mut u = || {
        s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (s >> 8) as f32 / 16_777_216.0 - 0.5
    };
    let v: Vec<f32> = (0..65536).map(|_| (u() + u() + u()) * 0.04).collect();
    let mut c = vec![0u8; 262144];
    let mut a = vec![0f32; 1024];
    let time = |name: &str, f: &mut dyn FnMut()| {
        let mut best = f64::MAX;
        for _ in 0..300 {
            let t = std::time::Instant::now();
            f();
            best = best.min(t.elapsed().as_secs_f64());
        }
        println!("{name}: {:.2} GB/s", 262144.0 / best / 1e9);
    };
    let src = bytemuck::cast_slice::<f32, u8>(&v).to_vec();
    for level in [level, fearless_simd::Level::Avx2(level.as_avx2().unwrap())] {
        println!("{level:?}");
        time("memcpy L2", &mut || {
            c.copy_from_slice(&src);
            std::hint::black_box(&c);
        });
        time("largest", &mut || {
            std::hint::black_box(fearless_simd::dispatch!(level, _=>largest(&v)));
        });
        time("fp16", &mut || {
            half::encode(level, half::Half::Fp16, &v, None, &mut c[..131072])
        });
        time("bf16", &mut || {
            half::encode(level, half::Half::Bf16, &v, None, &mut c[..131072])
        });
        time("not_finite", &mut || {
            std::hint::black_box(values::not_finite(level, &v));
        });
        time("int8", &mut || {
            int8::encode(level, 4096, &v, None, (&mut a[..16], &mut c[..65536]));
        });
        time("nf4", &mut || {
            four::encode(
                level,
                four::Four::Nf4,
                64,
                &v,
                None,
                (&mut a, &mut c[..32768]),
            );
        });
        time("fp4", &mut || {
            four::encode(
                level,
                four::Four::Fp4,
                64,
                &v,
                None,
                (&mut a, &mut c[..32768]),
            );
        });
        let d = Dice::new(1, "w").from(0);
        time("fp16 s", &mut || {
            half::encode(level, half::Half::Fp16, &v, Some(d), &mut c[..131072])
        });
        time("int8 s", &mut || {
            int8::encode(level, 4096, &v, Some(d), (&mut a[..16], &mut c[..65536]));
        });
        time("nf4 s", &mut || {
            four::encode(
                level,
                four::Four::Nf4,
                64,
                &v,
                Some(d),
                (&mut a, &mut c[..32768]),
            );
        });
        time("fp4 s", &mut || {
            four::encode(
                level,
                four::Four::Fp4,
                64,
                &v,
                Some(d),
                (&mut a, &mut c[..32768]),
            );
        });
        let r = adaptive::Range::new(-0.1, 0.1, 32).unwrap();
        time("adaptive", &mut || {
            adaptive::encode(level, &r, &v, None, &mut c[..65536]);
        });
        time("adaptive s", &mut || {
            adaptive::encode(level, &r, &v, Some(d), &mut c[..65536]);
        });
    }
}
